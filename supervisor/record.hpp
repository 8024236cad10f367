// What an update leaves behind: the record that the control socket answers with and the history keeps.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "handoff/base/result.hpp"

namespace liveupdate::supervisor {

enum class UpdateKind { kUpdate, kPlan, kRollback };

enum class Outcome {
    kCompleted,   // the guest runs in the destination
    kPlanned,     // a dry run that would work
    kNothingToDo, // the binary runs already
    kRefused,     // before the destination had been trusted with anything; the guest was not touched
    kAbandoned,   // a fault before the guest was paused; it runs in the source
    kRolledBack,  // paused, then the source took the guest back
    kFailed,      // see the reason
    kLost,        // the guest runs nowhere any more
};

// Who ran the guest in a phase.
enum class GuestOn { kSource, kNobody, kDestination };

// The stable words of JSON, logs and screens: "completed", "nothing-to-do", "rolled-back" and so on.
std::string_view to_string(UpdateKind kind);
std::string_view to_string(Outcome outcome);
std::string_view to_string(GuestOn guest_on);
std::optional<UpdateKind> parse_update_kind(std::string_view word);
std::optional<Outcome> parse_outcome(std::string_view word);
std::optional<GuestOn> parse_guest_on(std::string_view word);

struct RecordedBinary {
    std::string binary; // path
    std::string version;
    std::string build_id; // hex
    bool operator==(const RecordedBinary&) const = default;
};

struct RecordedPhase {
    std::string phase;
    uint64_t start_us = 0; // from the beginning of the update
    uint64_t end_us = 0;
    GuestOn guest_on = GuestOn::kSource;
    bool operator==(const RecordedPhase&) const = default;
};

struct BlackoutPart {
    std::string name;
    uint64_t us = 0;
    bool operator==(const BlackoutPart&) const = default;
};

struct UpdateRecord {
    std::string id;
    UpdateKind kind = UpdateKind::kUpdate;
    Outcome outcome = Outcome::kFailed;
    uint64_t started_unix_ms = 0;
    uint64_t duration_us = 0;
    RecordedBinary from;
    RecordedBinary to;
    std::vector<RecordedPhase> phases;
    // Absent when there was none, or when nobody lived to measure it.
    std::optional<uint64_t> blackout_us;
    std::optional<uint64_t> rehearsal_pause_us;
    std::optional<uint64_t> predicted_blackout_us;
    // The guest's own TSC (vCPU 0) when the destination took it: finds the gap that the guest saw.
    std::optional<uint64_t> guest_tsc_at_switchover;
    std::vector<BlackoutPart> blackout_split;
    // Of QEMU guests: how the guest got, or would get, to the destination, and why so. Empty otherwise.
    std::string way;
    std::string way_why;
    std::optional<uint64_t> vmm_downtime_us; // as the source QEMU measures it, in whole milliseconds
    std::string reason;                      // empty when all went well
    std::vector<std::string> notes; // what an operator should know beside, a clause each; mostly none
    bool operator==(const UpdateRecord&) const = default;
};

nlohmann::json to_json(const UpdateRecord& record);
// kInvalid when a key is missing or of the wrong type or an enumeration's word is unknown; keys that are not
// known here are passed over, since a later version may have written them.
Result<UpdateRecord> record_from_json(const nlohmann::json& json);

// "u-20261122-101530-4f2a": the second of the start in UTC, and 16 bits that keep two apart.
std::string update_id(int64_t unix_seconds, uint16_t salt);
// The same for now, with a random salt.
std::string new_update_id();
// Now, in milliseconds since 1970 by CLOCK_REALTIME: what `started_unix_ms` is.
uint64_t unix_ms();

} // namespace liveupdate::supervisor
