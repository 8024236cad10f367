#include "supervisor/update.hpp"

#include <poll.h>
#include <unistd.h>

#include "handoff/transfer_area.hpp"

namespace liveupdate::supervisor {
namespace {

using handoff::Party;
using handoff::Phase;
using handoff::proto::Message;

constexpr auto kArmTime = std::chrono::seconds(10);   // from arming to the beginning of the pause
constexpr auto kAnswerTime = std::chrono::seconds(5); // for answers that need no work
// For the source to give its VM up, once the requests that it has in flight have ended: it waits 30 s for a
// slow disk.
constexpr auto kEndTime = std::chrono::seconds(40);
constexpr uint64_t kWorthTellingUs = 500'000;
constexpr auto kProbationStep = std::chrono::milliseconds(100);

RecordedBinary recorded(const VmmProcess& process) {
    return {process.binary().info.path, process.offer().version(), process.binary().info.build_id};
}

uint64_t rounded_us(uint64_t ns) {
    return (ns + 500) / 1000;
}

} // namespace

Update::Update(Context context, UpdateRequest request, std::string id)
    : at_(std::move(context)), request_(std::move(request)),
      log_(request_, std::move(id), recorded(at_.source), at_.hooks.on_phase),
      deadline_(Deadline::after(request_.timeout)) {}

UpdateRecord Update::run() {
    const auto result = [&]() -> Result<void> {
        TRY(negotiate());
        TRY(prepare());
        if (wants_rehearsal()) TRY(rehearse());
        if (request_.kind == UpdateKind::kPlan) return {};
        TRY(switch_over());
        TRY(watch_probation());
        return {};
    }();
    if (!result)
        end_with(result.error());
    else if (request_.kind == UpdateKind::kPlan)
        throw_away();
    else
        complete();
    return log_.finish();
}

Result<void> Update::negotiate() {
    log_.enter(Phase::kNegotiating);
    const auto participant = handoff::next_participant(at_.source.participant());
    const std::string socket =
        at_.paths.vm_runtime_dir(at_.config.name) + "/vmm-" + std::to_string(participant) + ".sock";
    TRY_ASSIGN(destination_,
        VmmProcess::spawn(request_.binary, participant, socket, deadline_, at_.hooks.cancel_fd));
    at_.hooks.shelter({destination_.pid(), destination_.pidfd(), destination_.session_file()});
    log_.record().to.version = destination_.offer().version();
    TRY(reach(Phase::kNegotiating));

    Message describe;
    *describe.mutable_describe()->mutable_fault() =
        fault_for({Phase::kRehearsing, Phase::kPausing, Phase::kTransferring});
    TRY_ASSIGN(handoff::Received described, at_.source
                                                .request(std::move(describe), {}, Message::kDescription,
                                                    Deadline::after(kAnswerTime), at_.hooks.cancel_fd)
                                                .context("ask the source for its guest"));
    const auto& description = described.message.description();
    fixed_state_ = description.fixed_state();
    source_fds_ = std::move(described.fds);
    for (const auto& ours : at_.files.to_send())
        if (source_fds_.contains(ours.name))
            return Error(
                ErrorCode::kRefused, "the source sends a file descriptor '" + ours.name + "', which is ours");
    for (const char* name : {"transfer", "source-process"})
        if (source_fds_.contains(name))
            return Error(ErrorCode::kRefused,
                "the source sends a file descriptor '" + std::string(name) + "', which is ours");
    handoff::proto::Offer source = at_.source.offer();
    if (at_.files.origin() >= 0) source.add_required_capabilities(handoff::kOriginCapability);
    TRY_ASSIGN(agreement_,
        handoff::negotiate(source, destination_.offer(), handoff::sections_from(description.sections())));
    TRY_ASSIGN(transfer_, handoff::TransferArea::create(agreement_.sections));
    return {};
}

Result<void> Update::prepare() {
    log_.enter(Phase::kPreparing);
    Message message;
    auto& order = *message.mutable_prepare();
    *order.mutable_manifest() = handoff::to_message(at_.files.manifest);
    order.set_participant(destination_.participant());
    order.set_source_participant(at_.source.participant());
    handoff::add_sections(agreement_.sections, order.mutable_sections());
    order.set_fixed_state(fixed_state_);
    order.set_populate(at_.config.populate && request_.kind != UpdateKind::kPlan);
    order.set_rehearse(wants_rehearsal());
    *order.mutable_fault() = fault_for({Phase::kPreparing, Phase::kCommitting});
    auto fds = at_.files.to_send();
    fds.push_back({"transfer", transfer_.get()});
    fds.push_back({"source-process", at_.source.pidfd()}); // for descriptors that cannot be sent
    for (const auto& [name, fd] : source_fds_)
        fds.push_back({name, fd.get()});
    auto prepared =
        destination_.request(std::move(message), fds, Message::kPrepared, deadline_, at_.hooks.cancel_fd);
    source_fds_.clear();
    if (!prepared) return std::move(prepared).error().context("the destination prepares");
    return {};
}

Result<void> Update::rehearse() {
    log_.enter(Phase::kRehearsing);
    Message save;
    handoff::add_sections(agreement_.sections, save.mutable_save_trial()->mutable_sections());
    TRY_ASSIGN(const handoff::Received saved, at_.source
                                                  .request(std::move(save), {{"transfer", transfer_.get()}},
                                                      Message::kTrialSaved, deadline_, at_.hooks.cancel_fd)
                                                  .context("the source saves a trial state"));
    log_.record().rehearsal_pause_us = rounded_us(saved.message.trial_saved().pause_ns());
    Message load;
    load.mutable_load_trial();
    TRY_ASSIGN(const handoff::Received loaded,
        destination_.request(std::move(load), {}, Message::kTrialLoaded, deadline_, at_.hooks.cancel_fd)
            .context("the destination loads a trial state"));
    // Both halves as they were just measured; the throw-away VM's end is not part of a switchover.
    log_.record().predicted_blackout_us =
        rounded_us(saved.message.trial_saved().pause_ns() + loaded.message.trial_loaded().load_ns());
    return {};
}

// From here on nothing is cancelled: the two VMMs and the baton decide.
Result<void> Update::switch_over() {
    const Deadline begin = Deadline::after(kArmTime);
    const Deadline settled = Deadline::after(kArmTime + at_.config.blackout_limit + kAnswerTime);
    Message arm;
    arm.mutable_arm()->set_deadline_ns(Deadline::after(kArmTime + 2 * at_.config.blackout_limit).ns());
    TRY_ASSIGN(const handoff::Received armed,
        destination_.request(std::move(arm), {}, Message::kArmed, begin, at_.hooks.cancel_fd)
            .context("arm the destination"));

    log_.enter(Phase::kPausing);
    Message message;
    auto& order = *message.mutable_switchover();
    order.set_deadline_ns(begin.ns());
    order.set_blackout_limit_ns(static_cast<uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(at_.config.blackout_limit).count()));
    order.set_destination_participant(destination_.participant());
    handoff::add_sections(agreement_.sections, order.mutable_sections());
    const auto said = at_.source.request(std::move(message),
        {{"transfer", transfer_.get()}, {"destination", destination_.pidfd()}}, Message::kSwitched, settled);
    if (said) paused_ = said->message.switched().paused();
    auto ended = settle(settled);
    if (!ended) {
        paused_ = true;
        return ended;
    }
    if (committed_) {
        commit();
        return {};
    }
    if (!said) return Error(said.error().code, "switchover: " + said.error().message);
    return Error(ErrorCode::kRefused, said->message.switched().reason());
}

// Waits until somebody who lives holds the baton. An error means that nobody does, or that nobody can tell.
Result<void> Update::settle(Deadline deadline) {
    for (;;) {
        const handoff::BatonWord word = at_.files.baton->read();
        const bool held = word.state == handoff::BatonState::kHeld;
        committed_ = held && word.owner == destination_.participant();
        if (committed_ && destination_.alive()) return {};
        if (held && word.owner == at_.source.participant() && at_.source.alive()) return {};
        if (!destination_.alive() && !at_.source.alive())
            return Error(ErrorCode::kPeerGone, "neither VMM is alive");
        if (held) return Error(ErrorCode::kPeerGone, "the VMM that held the guest has died");
        if (deadline.passed()) return Error(ErrorCode::kTimeout, "the guest was offered and nobody took it");
        const int wait_on = destination_.alive() ? destination_.pidfd() : at_.source.pidfd();
        pollfd polled{wait_on, POLLIN, 0};
        ::poll(&polled, 1, 1);
    }
}

void Update::commit() {
    log_.enter(Phase::kProbation);
    auto said = destination_.await(Message::kSwitched, Deadline::after(kAnswerTime));
    if (said) note_switched(said->message.switched());
    // Where the guest's own clock stood, for whoever compares with what the guest saw.
    Message query;
    query.mutable_query();
    auto status = destination_.request(std::move(query), {}, Message::kStatus, Deadline::after(kAnswerTime));
    if (said && status)
        log_.record().guest_tsc_at_switchover = said->message.switched().host_tsc_at_take() +
                                                static_cast<uint64_t>(status->message.status().tsc_offset());
}

void Update::note_switched(const handoff::proto::Switched& switched) {
    log_.record().blackout_us = rounded_us(switched.blackout_ns());
    constexpr int kMostParts = 64;
    for (const auto& span : switched.spans()) {
        if (log_.record().blackout_split.size() >= kMostParts || span.end_ns() < span.start_ns()) break;
        log_.record().blackout_split.push_back(
            {span.name().substr(0, 64), rounded_us(span.end_ns() - span.start_ns())});
    }
}

Result<void> Update::watch_probation() {
    TRY(reach(Phase::kProbation));
    const Deadline end = Deadline::after(at_.config.probation);
    do {
        Message query;
        query.mutable_query();
        TRY_ASSIGN(const handoff::Received answer,
            destination_.request(std::move(query), {}, Message::kStatus, Deadline::after(kAnswerTime))
                .context("probation"));
        for (const auto& event : destination_.events())
            if (event.kind() == handoff::proto::GuestEvent::FAULTED)
                return Error(ErrorCode::kRefused, "the guest failed in the destination: " + event.detail());
        pollfd polled{destination_.pidfd(), POLLIN, 0};
        ::poll(&polled, 1, Deadline::after(kProbationStep).earlier(end).poll_ms());
    } while (!end.passed());
    return {};
}

// The guest runs in the destination and has shown that it does.
void Update::complete() {
    log_.record().outcome = Outcome::kCompleted;
    Message release;
    release.mutable_release();
    static_cast<void>(at_.source.tell(std::move(release)));
    const uint64_t released_us = log_.elapsed_us();
    at_.source.wait_or_kill(Deadline::after(kEndTime));
    log_.close_phase();
    if (log_.elapsed_us() - released_us > kWorthTellingUs)
        log_.record().phases.push_back({"releasing", released_us, log_.elapsed_us(), GuestOn::kDestination});
    previous_ = at_.source.take_binary();
    at_.source = std::move(destination_);
    log_.enter(Phase::kCompleted);
}

Outcome Update::outcome_before_pause(const Error& error) const {
    switch (error.code) {
    case ErrorCode::kAborted:
    case ErrorCode::kInternal:
    case ErrorCode::kSystem:
        return Outcome::kAbandoned;
    // A destination that dies or hangs before it has answered is no VMM; later it is a fault.
    case ErrorCode::kTimeout:
    case ErrorCode::kPeerGone:
        return log_.phase() == Phase::kNegotiating ? Outcome::kRefused : Outcome::kAbandoned;
    default:
        return Outcome::kRefused;
    }
}

void Update::end_with(const Error& error) {
    log_.record().reason = error.message;
    if (committed_) {
        // The destination has run the guest: there is no way back to the source's state.
        const bool lives = destination_.alive() && at_.files.baton->held_by(destination_.participant());
        log_.record().outcome = lives ? Outcome::kFailed : Outcome::kLost;
        at_.source.kill();
        at_.source = std::move(destination_);
        if (!lives) at_.source.kill();
        log_.enter(Phase::kFailed);
        return;
    }
    if (!at_.source.alive()) {
        destination_.kill();
        log_.record().outcome = Outcome::kLost;
        if (const auto how = at_.source.how_it_ended(); !how.empty())
            log_.record().reason += " (the source " + how + ")";
        at_.source.kill();
        log_.enter(Phase::kFailed);
        return;
    }
    log_.record().outcome = paused_ ? Outcome::kRolledBack : outcome_before_pause(error);
    if (destination_ && !destination_.alive() && !paused_ && log_.record().outcome == Outcome::kRefused &&
        log_.phase() != Phase::kNegotiating)
        log_.record().outcome = Outcome::kAbandoned;
    // The source tells only that nobody took the guest; why is seen here.
    const bool died = destination_ && !destination_.alive();
    destination_.kill();
    if (const auto how = destination_.how_it_ended();
        died && log_.record().reason.find(how) == std::string::npos)
        log_.record().reason += " (the destination " + how + ")";
    abandon();
}

// A dry run that went well.
void Update::throw_away() {
    log_.record().outcome = Outcome::kPlanned;
    destination_.kill();
    tell_source_it_is_off();
}

void Update::abandon() {
    tell_source_it_is_off();
    log_.enter(Phase::kAbandoned);
}

void Update::tell_source_it_is_off() {
    Message message;
    message.mutable_abandon();
    static_cast<void>(
        at_.source.request(std::move(message), {}, Message::kAbandoned, Deadline::after(kAnswerTime)));
}

bool Update::wants_rehearsal() const {
    switch (at_.config.rehearse) {
    case Rehearse::kAlways:
        return true;
    case Rehearse::kPlan:
        return request_.kind == UpdateKind::kPlan;
    case Rehearse::kNever:
        return false;
    }
    return true;
}

handoff::proto::Fault Update::fault_for(std::initializer_list<Phase> executed_here) const {
    if (!request_.fault) return {};
    for (const Phase phase : executed_here) {
        if (phase != request_.fault->phase) continue;
        pid_t victim = ::getpid();
        if (request_.fault->victim == Party::kSource) victim = at_.source.pid();
        if (request_.fault->victim == Party::kDestination) victim = destination_.pid();
        return handoff::FaultPoint(phase, request_.fault->action, victim).to_message();
    }
    return {};
}

// The faults that the supervisor itself is to cause.
Result<void> Update::reach(Phase phase) {
    return handoff::FaultPoint::from(fault_for({phase})).reached(phase);
}

} // namespace liveupdate::supervisor
