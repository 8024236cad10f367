#include "handoff/destination_session.hpp"

#include <algorithm>

#include "handoff/base/fd.hpp"
#include "handoff/negotiation.hpp"

namespace liveupdate::handoff {
namespace {

// How long the vCPU threads may take from the commit to KVM_RUN before their times are told without them.
constexpr auto kEnterTime = std::chrono::seconds(1);

// Far beyond any sense; a process that is armed listens to nobody until then.
constexpr auto kLongestArm = std::chrono::minutes(10);

constexpr uint32_t kLongestRamTimeoutMs = uint32_t{7} * 24 * 3600 * 1000;

void add_span(proto::Switched& out, std::string name, uint64_t start, uint64_t end) {
    if (start == 0 || end < start) return;
    auto* span = out.add_spans();
    span->set_name(std::move(name));
    span->set_start_ns(start);
    span->set_end_ns(end);
}

} // namespace

DestinationSession::DestinationSession(Vmm& vmm) : vmm_(vmm) {}
DestinationSession::~DestinationSession() = default;

Result<proto::Message> DestinationSession::prepare(const proto::Prepare& order, NamedFds& fds) {
    fault_ = FaultPoint::from(order.fault());
    TRY(fault_.reached(Phase::kPreparing));
    if (order.participant() == 0 || order.participant() > kMaxParticipant)
        return Error(
            ErrorCode::kProtocol, "prepare: there is no participant " + std::to_string(order.participant()));
    me_ = static_cast<Participant>(order.participant());
    TRY_ASSIGN(baton_fd_, take_fd(fds, "baton"));
    TRY_ASSIGN(Baton baton, Baton::map(baton_fd_.get()));
    baton_ = std::make_unique<Baton>(std::move(baton));
    if (me_ == order.source_participant() || me_ == baton_->read().owner)
        return Error(ErrorCode::kProtocol, "prepare: participant " + std::to_string(me_) +
                                               " is the source; a destination has a number of its own");
    TRY_ASSIGN(const UniqueFd area_fd, take_fd(fds, "transfer"));
    TRY_ASSIGN(TransferArea area, TransferArea::map(area_fd.get(), sections_from(order.sections())));
    area_ = std::make_shared<TransferArea>(std::move(area));

    PrepareOrder prepare;
    TRY_ASSIGN(prepare.manifest, take_manifest(order.manifest(), fds));
    prepare.fds = std::move(fds);
    prepare.me = me_;
    prepare.sections = area_->sections();
    prepare.fixed_state = order.fixed_state();
    prepare.populate = order.populate();
    prepare.rehearse = order.rehearse();
    prepare.lazy_ram = order.lazy_ram();
    prepare.save_uri = order.save_uri();
    if (order.has_save_sum()) prepare.save_sum = order.save_sum();
    prepare.ram_timeout =
        std::chrono::milliseconds(std::clamp(order.ram_timeout_ms(), 1u, kLongestRamTimeoutMs));
    prepare.new_generation = order.new_generation();
    if (order.has_saved_clocks()) prepare.saved_clocks = order.saved_clocks();
    prepare.baton = baton_.get();
    guest_ = vmm_.destination();
    proto::Message message;
    TRY_ASSIGN(*message.mutable_prepared(), guest_->prepare(std::move(prepare)));
    return message;
}

Result<proto::Message> DestinationSession::load_trial() {
    const uint64_t before = monotonic_ns();
    Incoming trial(
        area_, *baton_, me_, TransferRun::kTrial, Deadline::after(std::chrono::seconds(5)), fault_);
    TRY(guest_->rehearse(trial));
    // Until the last section was loaded: what is thrown away afterwards is no part of a switchover.
    uint64_t loaded = before;
    for (size_t i = 0; i < area_->sections().size(); ++i)
        loaded = std::max(loaded, area_->loaded_ns(i));
    proto::Message message;
    message.mutable_trial_loaded()->set_load_ns(loaded - before);
    return message;
}

Result<proto::Message> DestinationSession::arm(const proto::Arm& order) {
    const Deadline deadline = Deadline::at_ns(order.deadline_ns());
    if (deadline.left() > kLongestArm)
        return Error(ErrorCode::kProtocol, "arm: the deadline is too far away, more than ten minutes");
    incoming_ = std::make_shared<Incoming>(area_, *baton_, me_, TransferRun::kReal, deadline, fault_);
    TRY(guest_->load(incoming_));
    proto::Message message;
    message.mutable_armed();
    return message;
}

proto::Switched DestinationSession::await_switchover() {
    if (incoming_->watch_ownership()) {
        running_ = guest_->run();
        return committed();
    }
    proto::Switched out;
    out.set_committed(false);
    if (area_->refused())
        out.set_reason(area_->refusal());
    else if (area_->withdrawn())
        out.set_reason("the source gave the update up");
    else
        out.set_reason("the source did not offer the guest in time: " + to_string(baton_->read()));
    return out;
}

proto::Switched DestinationSession::committed() const {
    incoming_->await_entered(Deadline::after(kEnterTime));
    proto::Switched out;
    out.set_committed(true);
    out.set_paused(true);
    const uint64_t asked = area_->moment(Moment::kPauseAsked);
    const uint64_t stopped = area_->moment(Moment::kFirstStopped);
    const uint64_t all_stopped = area_->moment(Moment::kLastStopped);
    const uint64_t offered = area_->moment(Moment::kOffered);
    const uint64_t taken = area_->moment(Moment::kTaken);
    const uint64_t entered = area_->moment(Moment::kLastEntered);
    out.set_blackout_ns(entered > stopped ? entered - stopped : 0);
    out.set_host_tsc_at_take(area_->moment(Moment::kTakenTsc));
    add_span(out, "kick", asked, stopped);
    add_span(out, "stop", stopped, all_stopped);
    add_span(out, "save", all_stopped, offered);
    add_span(out, "load", offered, taken);
    add_span(out, "enter", taken, entered);
    for (size_t i = 0; i < area_->sections().size(); ++i)
        add_span(out, "section " + area_->sections()[i].name(), area_->put_ns(i), area_->loaded_ns(i));
    return out;
}

std::unique_ptr<SourceSession> DestinationSession::become_source() {
    return std::make_unique<SourceSession>(std::move(running_), std::move(baton_), std::move(baton_fd_), me_);
}

} // namespace liveupdate::handoff
