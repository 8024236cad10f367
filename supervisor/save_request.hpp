// What a save is asked to do and what came of it; what a restore is asked to do.
#pragma once

#include <chrono>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "handoff/base/result.hpp"

namespace liveupdate::supervisor {

enum class SaveKind {
    kFile,    // RAM is written to the file
    kInPlace, // RAM stays in its own files, which get a name beside; the guest ends
};

// Whether the guest runs while its RAM is written.
enum class WhileSaving { kStandsStill, kRuns };

enum class AfterSave { kGoOn, kStop };

// What becomes of the disks that the guest writes to.
enum class SaveDisks {
    kLeave,
    kCopy, // as they are when the guest stands still, into the folder: "disk0" and so on
};

// The stable words: "file", "in-place".
std::string_view to_string(SaveKind kind);
std::optional<SaveKind> parse_save_kind(std::string_view word);

// Where RAM that is written goes, for VMMs that can map it from there.
enum class SaveRam {
    kInSave, // into the file, as the format has it
    kImage,  // of a guest of QEMU: into a file of its own, byte by byte, which clones map
};

// What has been done when a step is reached; for faults in tests.
enum class SaveStep { kDescribed, kStopped, kWritten, kFinished, kTaken };
std::optional<SaveStep> parse_save_step(std::string_view word);

struct SaveRequest {
    std::string directory; // absolute
    SaveKind kind = SaveKind::kFile;
    WhileSaving meanwhile = WhileSaving::kStandsStill;
    AfterSave after = AfterSave::kGoOn;
    SaveDisks disks = SaveDisks::kLeave;
    SaveRam ram = SaveRam::kInSave; // kImage: a wish, which only a VMM without other means fulfils
    std::chrono::microseconds
        timeout{};                  // for the guest to stand still; then it goes on, and there is no save
    std::string config_text;        // of the VM's file
    std::optional<SaveStep> die_at; // the supervisor, in tests
};

struct SaveReport {
    std::string path;
    uint64_t ram_bytes = 0;
    uint64_t written_bytes = 0; // of RAM, each time that a page was written
    uint64_t passes = 0;        // over RAM that the guest wrote meanwhile, before it was stopped
    uint64_t stood_still_us = 0;
    uint64_t sync_us = 0; // until all of it was on the disk
    uint64_t duration_us = 0;
    AfterSave after = AfterSave::kGoOn;
    std::vector<std::string> notes; // for a user
};
nlohmann::json to_json(const SaveReport& report);

enum class RestoreRam {
    kEager,  // read before the guest runs
    kLazy,   // fetched when it is touched, and in the background
    kMapped, // fetched page by page when it is touched, and not before; the file stays its origin
};

// Who the restored guest is.
enum class Identity {
    kSame, // the saved one, which goes on
    kNew,  // a copy of it, which is told so, and whose network cards may have other addresses
};

inline constexpr std::chrono::milliseconds kRamTimeout = std::chrono::minutes(5);
inline constexpr std::chrono::milliseconds kLongestRamTimeout = std::chrono::hours(7 * 24);

struct RestoreRequest {
    std::string from; // an absolute path of a folder, or the URI of an NBD export
    RestoreRam ram = RestoreRam::kEager;
    Identity identity = Identity::kSame;
    // Lazily from an NBD server: how long the guest may wait for what it has touched, before it is given up.
    std::chrono::milliseconds ram_timeout = kRamTimeout;
};

// kInvalid, in words: such a restore there is not.
Result<void> check(const RestoreRequest& request);

// What the saved guest is read from: the file in the folder, or the URI.
std::string save_at(const std::string& from);

// How long the parts of a restore took, in their order.
struct RestoreReport {
    uint64_t ram_us = 0;       // RAM read, or taken as it is
    uint64_t start_us = 0;     // the VMM's process
    uint64_t prepare_us = 0;   // its machine, until its vCPUs wait for their state
    uint64_t hand_over_us = 0; // device state; at its end the vCPUs run
    uint64_t entered_ns = 0;   // that moment, by CLOCK_MONOTONIC
    std::vector<std::string> notes;
};
nlohmann::json to_json(const RestoreReport& report);

} // namespace liveupdate::supervisor
