// The ways in which a guest gets from one QEMU to another, and which of them fits. Pure.
//
//   x-ignore-shared  RAM is shared memory that both map; the device state crosses over a unix socket
//   cpr-transfer     the same, and descriptors of devices cross, too; QEMU's own way since 10.0
//   postcopy         RAM is private to the QEMU: the guest moves first, and its pages follow, given back by
//                    the source one by one. Once it has begun there is no way back to the source
#pragma once

#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "handoff/base/result.hpp"

namespace liveupdate::supervisor::qemu {

enum class Way { kIgnoreShared, kCprTransfer, kPostcopy };

// The words of `--way`, records and screens.
std::string_view to_string(Way way);
std::optional<Way> parse_way(std::string_view word);
std::string names_of_ways(); // "x-ignore-shared, cpr-transfer, postcopy"

// What a QEMU says that it can do.
struct Offer {
    std::string version;                // "7.2.22"
    std::set<std::string> capabilities; // of migration
    bool cpr_transfer = false;          // the migration mode of that name
};

// Whether a QEMU with the same arguments maps the same RAM.
enum class RamPlace {
    kInFiles, // it does
    kMixed,   // of some blocks
    kApart,   // it makes its own
    kCopied,  // it maps the same file, and what the guest has written is private to this one
};

// What a guest has become by its start.
struct GuestFacts {
    RamPlace ram = RamPlace::kInFiles;
    bool ram_is_shared = false;     // all of it, with share=on
    bool aux_ram_is_shared = false; // machine option aux-ram-share
    std::string blocked{};          // why QEMU does not migrate it in the common mode; empty: it does
};

struct ChosenWay {
    Way way = Way::kIgnoreShared;
    std::string why; // "the guest's RAM is shared", for `plan`
};

// The first way of the table that both QEMUs and the guest are fit for, or the one that was asked for.
// kRefused: none is, or that one is not, with what is missing of each.
Result<ChosenWay> choose_way(
    const Offer& source, const Offer& destination, const GuestFacts& guest, std::optional<Way> asked_for);

} // namespace liveupdate::supervisor::qemu
