// The destination's part in a handoff: prepare, rehearse, arm, and then either own the guest or end.
#pragma once

#include <memory>
#include <optional>

#include "handoff/baton.hpp"
#include "handoff/channel.hpp"
#include "handoff/fault.hpp"
#include "handoff/guest.hpp"
#include "handoff/source_session.hpp"
#include "handoff/transfer_area.hpp"

namespace liveupdate::handoff {

class DestinationSession {
public:
    explicit DestinationSession(Vmm& vmm);
    ~DestinationSession();

    Result<proto::Message> prepare(const proto::Prepare& order, NamedFds& fds);
    Result<proto::Message> load_trial();
    Result<proto::Message> arm(const proto::Arm& order);
    // After arm(): blocks until the baton is ours or never will be.
    proto::Switched await_switchover();
    // After a committed switchover: the guest's session as a source-to-be. This object is empty then.
    std::unique_ptr<SourceSession> become_source();

private:
    proto::Switched committed() const;

    Vmm& vmm_;
    std::unique_ptr<Baton> baton_; // outlives the guest
    UniqueFd baton_fd_;
    Participant me_ = 0;
    std::shared_ptr<TransferArea> area_;
    FaultPoint fault_;
    std::shared_ptr<Incoming> incoming_;
    std::unique_ptr<DestinationGuest> guest_;
    std::unique_ptr<SourceGuest> running_; // from the commit to become_source()
};

} // namespace liveupdate::handoff
