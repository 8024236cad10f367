#include "handoff/fault.hpp"

#include <signal.h>
#include <unistd.h>

#include "handoff/base/deadline.hpp"
#include "handoff/base/fd.hpp"

namespace liveupdate::handoff {

FaultPoint::FaultPoint(Phase phase, FaultAction action, pid_t victim)
    : phase_(phase), action_(action), victim_(victim) {}

FaultPoint FaultPoint::from(const proto::Fault& message) {
    const auto phase = parse_phase(message.phase());
    if (!phase) return {};
    return {*phase, message.action() == "fail" ? FaultAction::kFail : FaultAction::kKill,
        static_cast<pid_t>(message.victim())};
}

proto::Fault FaultPoint::to_message() const {
    proto::Fault message;
    if (!phase_) return message;
    message.set_phase(std::string(to_string(*phase_)));
    message.set_action(action_ == FaultAction::kFail ? "fail" : "kill");
    message.set_victim(static_cast<uint32_t>(victim_));
    return message;
}

Result<void> FaultPoint::reached(Phase phase) {
    if (phase_ != phase) return {};
    phase_.reset();
    if (action_ == FaultAction::kFail)
        return Error(
            ErrorCode::kInternal, "a fault asked for by a test, while " + std::string(to_string(phase)));
    if (victim_ <= 1) return {};
    const auto pidfd = fd::pidfd_open(victim_);
    ::kill(victim_, SIGKILL);
    // What follows in this phase must meet a dead peer, not a dying one.
    const Deadline deadline = Deadline::after(std::chrono::seconds(2));
    while (pidfd && !fd::process_gone(pidfd->get()) && !deadline.passed())
        ::usleep(50);
    return {};
}

} // namespace liveupdate::handoff
