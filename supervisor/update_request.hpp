// What an update is asked to do.
#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "handoff/fault.hpp"
#include "handoff/phase.hpp"
#include "supervisor/open_binary.hpp"
#include "supervisor/record.hpp"

namespace liveupdate::supervisor {

// A fault for tests: whom to strike, when and how.
struct FaultRequest {
    handoff::Phase phase{};
    handoff::Party victim{};
    handoff::FaultAction action{};
};

struct UpdateRequest {
    UpdateKind kind = UpdateKind::kUpdate;
    OpenBinary binary;
    std::chrono::microseconds timeout{}; // preparing and rehearsing together
    std::string way;                     // of QEMU guests: its name; empty: the best one that fits
    std::optional<FaultRequest> fault;
};

} // namespace liveupdate::supervisor
