#include "supervisor/qemu/ways.hpp"

#include <array>
#include <vector>

namespace liveupdate::supervisor::qemu {
namespace {

enum class Ram {
    kInFiles,   // that both QEMUs map
    kAllShared, // that of ROMs and video, too
    kApart,     // each QEMU has its own
};

struct Row {
    Way way;
    std::string_view name;
    std::string_view since; // the first QEMU that has it
    std::vector<std::string_view> capabilities;
    Ram ram;
    std::string_view why;
};

// In the order of preference: by the guest's downtime, and a way without return last.
const std::array<Row, 3>& table() {
    static const std::array<Row, 3> kTable = {{
        {Way::kIgnoreShared, "x-ignore-shared", "4.0", {"events", "late-block-activate", "x-ignore-shared"},
            Ram::kInFiles, "the guest's RAM is shared memory, which both QEMUs map"},
        {Way::kCprTransfer, "cpr-transfer", "10.0", {"events", "late-block-activate"}, Ram::kAllShared,
            "all of the guest's RAM is shared memory, and descriptors of its devices cross"},
        {Way::kPostcopy, "postcopy", "4.0", {"events", "late-block-activate", "postcopy-ram", "release-ram"},
            Ram::kApart,
            "the guest's RAM is private to its QEMU; its pages follow the guest, and there is no way back to "
            "the source once it runs in the destination"},
    }};
    return kTable;
}

const Row& row(Way way) {
    return table()[static_cast<size_t>(way)];
}

// What stands in the way; empty when nothing does.
std::string lacking(const Row& row, const Offer& offer) {
    const std::string qemu = "QEMU " + offer.version;
    for (const auto name : row.capabilities)
        if (!offer.capabilities.contains(std::string(name)))
            return qemu + " has no migration capability '" + std::string(name) + "' (" +
                   std::string(row.since) + " and later do)";
    if (row.way == Way::kCprTransfer && !offer.cpr_transfer)
        return qemu + " has no migration mode 'cpr-transfer' (" + std::string(row.since) + " and later do)";
    return {};
}

std::string obstacle(const Row& row, const Offer& source, const Offer& destination, const GuestFacts& guest) {
    if (guest.ram == RamPlace::kCopied && row.ram == Ram::kApart)
        return "the guest's RAM is a file mapped privately (share=off), as a clone's is, and QEMU would take "
               "out of that file what it has moved";
    if (row.ram == Ram::kApart && guest.ram != RamPlace::kApart)
        return "both QEMUs map the guest's RAM: moving it would destroy it";
    if (row.ram == Ram::kInFiles && guest.ram != RamPlace::kInFiles)
        return "the guest's RAM is private to its QEMU, or in no file that another one could map";
    if (row.ram == Ram::kAllShared && !guest.ram_is_shared)
        return "the guest's RAM is private to its QEMU (share=off)";
    for (const Offer* offer : {&source, &destination})
        if (std::string what = lacking(row, *offer); !what.empty()) return what;
    if (row.ram == Ram::kAllShared && !guest.aux_ram_is_shared)
        return "the guest was started without the machine option aux-ram-share=on";
    if (row.way != Way::kCprTransfer && !guest.blocked.empty())
        return "QEMU cannot migrate this guest: " + guest.blocked;
    return {};
}

} // namespace

std::string_view to_string(Way way) {
    return row(way).name;
}

std::optional<Way> parse_way(std::string_view word) {
    for (const Row& each : table())
        if (each.name == word) return each.way;
    return std::nullopt;
}

std::string names_of_ways() {
    std::string all;
    for (const Row& each : table())
        all += (all.empty() ? "" : ", ") + std::string(each.name);
    return all;
}

Result<ChosenWay> choose_way(
    const Offer& source, const Offer& destination, const GuestFacts& guest, std::optional<Way> asked_for) {
    std::string obstacles;
    for (const Row& each : table()) {
        if (asked_for && each.way != *asked_for) continue;
        const std::string what = obstacle(each, source, destination, guest);
        if (what.empty()) return ChosenWay{each.way, std::string(each.why)};
        obstacles += (obstacles.empty() ? "" : "; ") + std::string(each.name) + ": " + what;
    }
    return Error(ErrorCode::kRefused,
        (asked_for ? "the way that was asked for does not fit: " : "no way fits: ") + obstacles);
}

} // namespace liveupdate::supervisor::qemu
