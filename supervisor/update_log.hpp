// The record of an update while it is made: phases with their times, and the faults that tests ask for.
#pragma once

#include <functional>
#include <string>

#include "handoff/base/result.hpp"
#include "handoff/phase.hpp"
#include "supervisor/record.hpp"
#include "supervisor/update_request.hpp"

namespace liveupdate::supervisor {

class UpdateLog {
public:
    using OnPhase = std::function<void(handoff::Phase, uint64_t elapsed_us)>;

    // The update begins now.
    UpdateLog(const UpdateRequest& request, std::string id, RecordedBinary from, OnPhase on_phase);

    UpdateRecord& record() { return record_; }
    handoff::Phase phase() const { return phase_; }
    uint64_t elapsed_us() const;

    void enter(handoff::Phase phase);
    void close_phase();
    UpdateRecord finish();

private:
    UpdateRecord record_;
    OnPhase on_phase_;
    uint64_t began_ns_;
    handoff::Phase phase_ = handoff::Phase::kNegotiating;
};

} // namespace liveupdate::supervisor
