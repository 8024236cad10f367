#include "handoff/source_session.hpp"

#include "handoff/base/fd.hpp"
#include "handoff/negotiation.hpp"

namespace liveupdate::handoff {
namespace {

// Far beyond any sense; a peer's number does not decide how long a guest may stand still.
constexpr uint64_t kLongestBlackoutNs = 600'000'000'000;

Result<void> check_order(const proto::Switchover& order, Participant me) {
    if (order.destination_participant() == 0 || order.destination_participant() > kMaxParticipant ||
        order.destination_participant() == me)
        return Error(ErrorCode::kProtocol, "switchover: there is no such destination");
    if (order.blackout_limit_ns() > kLongestBlackoutNs)
        return Error(ErrorCode::kProtocol, "switchover: the blackout limit is more than ten minutes");
    return {};
}

// The destination's pidfd. A supervisor need not send it: then its death shows at the blackout limit only.
UniqueFd take_destination(NamedFds& fds) {
    auto taken = take_fd(fds, "destination");
    return taken ? std::move(taken).value() : UniqueFd();
}

// All of them have been put when the baton has been offered.
Error forgotten_section(const TransferArea& area) {
    std::string name = "unknown";
    for (size_t i = 0; i < area.sections().size(); ++i)
        if (!area.is_put(i, TransferRun::kReal)) name = area.sections()[i].name();
    return {ErrorCode::kInternal, "the guest's state was saved without section " + name};
}

} // namespace

Result<std::unique_ptr<SourceSession>> SourceSession::launch(
    Vmm& vmm, const proto::Launch& order, NamedFds& fds) {
    if (order.participant() == 0 || order.participant() > kMaxParticipant)
        return Error(
            ErrorCode::kProtocol, "launch: there is no participant " + std::to_string(order.participant()));
    const auto me = static_cast<Participant>(order.participant());
    TRY_ASSIGN(UniqueFd baton_fd, take_fd(fds, "baton"));
    TRY_ASSIGN(Baton mapped, Baton::map(baton_fd.get()));
    auto baton = std::make_unique<Baton>(std::move(mapped));
    LaunchOrder launch;
    TRY_ASSIGN(launch.manifest, take_manifest(order.manifest(), fds));
    launch.fds = std::move(fds);
    launch.me = me;
    launch.baton = baton.get();
    if (!baton->claim(me) && !baton->held_by(me))
        return Error(ErrorCode::kRefused, "launch: the guest has an owner: " + to_string(baton->read()));
    TRY_ASSIGN(auto guest, vmm.launch(std::move(launch)));
    return std::make_unique<SourceSession>(std::move(guest), std::move(baton), std::move(baton_fd), me);
}

SourceSession::SourceSession(
    std::unique_ptr<SourceGuest> guest, std::unique_ptr<Baton> baton, UniqueFd baton_fd, Participant me)
    : baton_(std::move(baton)), baton_fd_(std::move(baton_fd)), guest_(std::move(guest)), me_(me) {}

SourceSession::~SourceSession() = default;

bool SourceSession::lost_guest() const {
    return !baton_->held_by(me_);
}

Result<proto::Message> SourceSession::describe(
    const proto::Describe& order, pid_t, std::vector<FdToSend>& fds) {
    area_.reset();
    fault_ = FaultPoint::from(order.fault());
    TRY_ASSIGN(GuestDescription description, guest_->describe());
    proto::Message message;
    add_sections(description.sections, message.mutable_description()->mutable_sections());
    message.mutable_description()->set_fixed_state(std::move(description.fixed_state));
    fds = std::move(description.fds);
    return message;
}

Result<void> SourceSession::open_area(
    const google::protobuf::RepeatedPtrField<proto::Section>& sections, NamedFds& fds) {
    if (area_) return {};
    TRY_ASSIGN(const UniqueFd file, take_fd(fds, "transfer"));
    TRY_ASSIGN(TransferArea area, TransferArea::map(file.get(), sections_from(sections)));
    area_.emplace(std::move(area));
    return {};
}

Result<proto::Message> SourceSession::save_trial(const proto::SaveTrial& order, NamedFds& fds) {
    TRY(open_area(order.sections(), fds));
    Outgoing out(*area_, *baton_, me_, 0, TransferRun::kTrial, fault_);
    const uint64_t before = monotonic_ns();
    const auto saved = guest_->save(out, Deadline::after(std::chrono::seconds(2)));
    guest_->resume();
    const uint64_t after = monotonic_ns();
    TRY(saved);
    proto::Message message;
    message.mutable_trial_saved()->set_pause_ns(after - before);
    return message;
}

Result<proto::Message> SourceSession::track_writes(const proto::TrackWrites& order, NamedFds& fds) {
    switch (order.way()) {
    case proto::TrackWrites::BEGIN: {
        TRY_ASSIGN(const UniqueFd file, take_fd(fds, "writes"));
        TRY_ASSIGN(WriteMap map, WriteMap::map(file.get(), guest_->manifest()));
        TRY(guest_->begin_write_log(std::move(map)));
        break;
    }
    case proto::TrackWrites::COLLECT:
        TRY(guest_->collect_writes());
        break;
    default:
        return Error(ErrorCode::kProtocol, "writes are not tracked in that way");
    }
    proto::Message message;
    message.mutable_writes_tracked();
    return message;
}

// The guest goes on here; the words tell why.
proto::Message SourceSession::give_back(Error why) {
    area_->withdraw();
    baton_->ring();
    guest_->resume();
    guest_->update_over();
    proto::Message message;
    message.mutable_switched()->set_committed(false);
    message.mutable_switched()->set_paused(true);
    message.mutable_switched()->set_reason(why.message);
    area_.reset();
    return message;
}

Result<proto::Message> SourceSession::switchover(const proto::Switchover& order, NamedFds& fds) {
    TRY(check_order(order, me_));
    TRY(open_area(order.sections(), fds));
    const UniqueFd destination = take_destination(fds);
    if (Deadline::at_ns(order.deadline_ns()).passed())
        return Error(ErrorCode::kTimeout, "the switchover was asked for too late");
    TRY(fault_.reached(Phase::kPausing));

    const BatonWord before = baton_->read();
    const Deadline limit = Deadline::after(std::chrono::nanoseconds(order.blackout_limit_ns()));
    Outgoing out(*area_, *baton_, me_, static_cast<Participant>(order.destination_participant()),
        TransferRun::kReal, fault_);
    area_->stamp(Moment::kPauseAsked);
    auto saved = guest_->save(out, limit);
    if (!saved) {
        // Had every section been put, the baton would be offered: it is ours unless it was taken.
        if (baton_->held_by(me_) || baton_->take_back(me_))
            return give_back(std::move(saved).error().context("save the guest's state"));
    }
    if (baton_->held_by(me_)) return give_back(forgotten_section(*area_));
    const auto hopeless = [&] {
        return area_->refused() || (destination && fd::process_gone(destination.get()));
    };
    baton_->wait([&](BatonWord now) { return now.epoch != before.epoch || hopeless(); }, limit);
    if (baton_->take_back(me_)) {
        if (area_->refused()) return give_back({ErrorCode::kRefused, area_->refusal()});
        if (hopeless()) return give_back({ErrorCode::kPeerGone, "the destination died"});
        return give_back(
            {ErrorCode::kTimeout, "the destination did not take the guest within the blackout limit"});
    }
    proto::Message message;
    message.mutable_switched()->set_committed(true);
    message.mutable_switched()->set_paused(true);
    return message;
}

proto::Message SourceSession::adopted() const {
    proto::Message message;
    *message.mutable_adopted()->mutable_manifest() = to_message(guest_->manifest());
    message.mutable_adopted()->set_participant(me_);
    return message;
}

std::vector<FdToSend> SourceSession::adoption_fds() const {
    auto fds = guest_->adoption_fds();
    for (const FdToSend& fd : fds_of(guest_->manifest()))
        fds.push_back(fd);
    fds.push_back({"baton", baton_fd_.get()});
    return fds;
}

void SourceSession::abandon() {
    if (area_) {
        area_->withdraw();
        baton_->ring();
        area_.reset();
    }
    fault_ = {};
    guest_->update_over();
}

void SourceSession::supervisor_gone() {
    if (!lost_guest()) abandon();
}

void SourceSession::let_go() {
    guest_->let_go();
}

} // namespace liveupdate::handoff
