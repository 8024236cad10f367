#include "supervisor/qemu/offers.hpp"

#include <algorithm>

#include "supervisor/qemu/open_files.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

using nlohmann::json;

// Types have no names in the schema: the mode is known by its value.
bool has_cpr_transfer(const json& schema) {
    if (!schema.is_array()) return false;
    return std::any_of(schema.begin(), schema.end(), [](const json& type) {
        const auto values = type.find("values");
        return word_in(type, "meta-type") == "enum" && values != type.end() && values->is_array() &&
               std::find(values->begin(), values->end(), "cpr-transfer") != values->end();
    });
}

// Empty: of RAM in no file, or in a memfd that QEMU has made itself.
Result<std::string> file_of(QemuProcess& qemu, const std::string& id, Deadline deadline, int cancel_fd) {
    const auto path =
        qemu.execute("qom-get", {{"path", "/objects/" + id}, {"property", "mem-path"}}, deadline, cancel_fd);
    if (!path && path.error().code == ErrorCode::kRefused) return std::string();
    if (!path) return path.error();
    return path->is_string() ? path->get<std::string>() : std::string();
}

// In a file that another QEMU can map by the same arguments: an unlinked file in a folder is none.
Result<bool> is_in_a_file(QemuProcess& qemu, const std::string& path) {
    if (path.empty()) return false;
    auto open = has_open(qemu, path);
    if (!open && open.error().code == ErrorCode::kRefused) return false;
    return open;
}

Result<void> look_at_ram(QemuProcess& qemu, GuestFacts& facts, Deadline deadline, int cancel_fd) {
    TRY_ASSIGN(const json all, qemu.execute("query-memdev", nullptr, deadline, cancel_fd));
    if (!all.is_array() || all.empty())
        return Error(ErrorCode::kRefused, "QEMU tells of no RAM (query-memdev)");
    size_t shared_blocks = 0, in_files = 0, copied = 0;
    for (const json& each : all) {
        const auto share = each.find("share");
        TRY_ASSIGN(const std::string path, file_of(qemu, word_in(each, "id"), deadline, cancel_fd));
        if (share == each.end() || !share->is_boolean() || !share->get<bool>()) {
            copied += path.empty() ? 0 : 1;
            continue;
        }
        ++shared_blocks;
        TRY_ASSIGN(const bool in_a_file, is_in_a_file(qemu, path));
        in_files += in_a_file ? 1 : 0;
    }
    facts.ram_is_shared = shared_blocks == all.size();
    facts.ram = copied > 0               ? RamPlace::kCopied
                : in_files == 0          ? RamPlace::kApart
                : in_files == all.size() ? RamPlace::kInFiles
                                         : RamPlace::kMixed;
    return {};
}

} // namespace

Result<Offer> offer_of(QemuProcess& qemu, Modes modes, Deadline deadline, int cancel_fd) {
    Offer offer;
    offer.version = qemu.monitor().version();
    TRY_ASSIGN(const json all, qemu.execute("query-migrate-capabilities", nullptr, deadline, cancel_fd));
    if (all.is_array())
        for (const json& each : all)
            offer.capabilities.insert(word_in(each, "capability"));
    if (modes == Modes::kPassOver) return offer;
    TRY_ASSIGN(const json schema, qemu.execute("query-qmp-schema", nullptr, deadline, cancel_fd));
    offer.cpr_transfer = has_cpr_transfer(schema);
    return offer;
}

Result<GuestFacts> facts_of(QemuProcess& qemu, Deadline deadline, int cancel_fd) {
    GuestFacts facts;
    TRY(look_at_ram(qemu, facts, deadline, cancel_fd));
    // Before 10.0 a machine has no such property.
    const auto aux =
        qemu.execute("qom-get", {{"path", "/machine"}, {"property", "aux-ram-share"}}, deadline, cancel_fd);
    if (!aux && aux.error().code != ErrorCode::kRefused) return aux.error();
    facts.aux_ram_is_shared = aux && aux->is_boolean() && aux->get<bool>();
    TRY_ASSIGN(const json migration, qemu.execute("query-migrate", nullptr, deadline, cancel_fd));
    const auto blocked = migration.find("blocked-reasons");
    if (blocked != migration.end() && blocked->is_array() && !blocked->empty())
        facts.blocked =
            blocked->front().is_string() ? blocked->front().get<std::string>() : "no reason given";
    return facts;
}

} // namespace liveupdate::supervisor::qemu
