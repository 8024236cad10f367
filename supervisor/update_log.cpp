#include "supervisor/update_log.hpp"

#include "handoff/base/deadline.hpp"

namespace liveupdate::supervisor {
namespace {

using handoff::Party;
using handoff::Phase;

GuestOn guest_on(Phase phase) {
    switch (handoff::row(phase).guest_on) {
    case Party::kDestination:
        return GuestOn::kDestination;
    case Party::kNobody:
        return GuestOn::kNobody;
    default:
        return GuestOn::kSource;
    }
}

} // namespace

UpdateLog::UpdateLog(const UpdateRequest& request, std::string id, RecordedBinary from, OnPhase on_phase)
    : on_phase_(std::move(on_phase)), began_ns_(monotonic_ns()) {
    record_.id = std::move(id);
    record_.kind = request.kind;
    record_.started_unix_ms = unix_ms();
    record_.from = std::move(from);
    record_.to = {request.binary.info.path, "", request.binary.info.build_id};
}

uint64_t UpdateLog::elapsed_us() const {
    return (monotonic_ns() - began_ns_) / 1000;
}

void UpdateLog::enter(Phase phase) {
    close_phase();
    phase_ = phase;
    if (!handoff::is_end(phase))
        record_.phases.push_back({std::string(handoff::to_string(phase)), elapsed_us(), 0, guest_on(phase)});
    if (on_phase_) on_phase_(phase, elapsed_us());
}

void UpdateLog::close_phase() {
    if (!record_.phases.empty() && record_.phases.back().end_us == 0)
        record_.phases.back().end_us = elapsed_us();
}

UpdateRecord UpdateLog::finish() {
    close_phase();
    record_.duration_us = elapsed_us();
    return std::move(record_);
}

} // namespace liveupdate::supervisor
