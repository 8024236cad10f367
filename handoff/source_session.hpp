// The source's part in a handoff: describe, save a trial, switch over, let go. On every failure before the
// commit the guest runs on here; after it, this process never enters the guest again.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>

#include "handoff/baton.hpp"
#include "handoff/channel.hpp"
#include "handoff/fault.hpp"
#include "handoff/guest.hpp"
#include "handoff/transfer_area.hpp"

namespace liveupdate::handoff {

class SourceSession {
public:
    // Starts a guest: takes the manifest and the baton out of `fds`, claims the baton.
    static Result<std::unique_ptr<SourceSession>> launch(Vmm& vmm, const proto::Launch& order, NamedFds& fds);
    // Around a guest that this process already runs; `baton_fd` maps to `baton`.
    SourceSession(
        std::unique_ptr<SourceGuest> guest, std::unique_ptr<Baton> baton, UniqueFd baton_fd, Participant me);
    ~SourceSession();

    SourceGuest& guest() { return *guest_; }
    Participant me() const { return me_; }
    bool lost_guest() const;

    Result<proto::Message> describe(
        const proto::Describe& order, pid_t supervisor, std::vector<FdToSend>& fds);
    Result<proto::Message> save_trial(const proto::SaveTrial& order, NamedFds& fds);
    Result<proto::Message> track_writes(const proto::TrackWrites& order, NamedFds& fds);
    Result<proto::Message> switchover(const proto::Switchover& order, NamedFds& fds);
    proto::Message adopted() const;
    std::vector<FdToSend> adoption_fds() const;

    void abandon();         // the update is off
    void supervisor_gone(); // so is whatever it had begun
    void let_go();

private:
    Result<void> open_area(const google::protobuf::RepeatedPtrField<proto::Section>& sections, NamedFds& fds);
    proto::Message give_back(Error why);

    std::unique_ptr<Baton> baton_; // outlives the guest
    UniqueFd baton_fd_;
    std::unique_ptr<SourceGuest> guest_;
    Participant me_;
    std::optional<TransferArea> area_;
    FaultPoint fault_;
};

} // namespace liveupdate::handoff
