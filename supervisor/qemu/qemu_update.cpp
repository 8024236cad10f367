#include "supervisor/qemu/qemu_update.hpp"

#include <poll.h>
#include <unistd.h>

#include <utility>

#include "supervisor/qemu/command_line.hpp"
#include "supervisor/qemu/compare.hpp"
#include "supervisor/qemu/offers.hpp"
#include "supervisor/qemu/open_files.hpp"
#include "supervisor/qemu/run_state.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

using handoff::Party;
using handoff::Phase;
using nlohmann::json;

constexpr auto kAnswerTime = std::chrono::seconds(5); // for answers that need no work
constexpr auto kStartTime = std::chrono::seconds(10); // from the order to migrate to the guest's stop
constexpr auto kEndTime = std::chrono::seconds(10);   // for a source to close its images
constexpr auto kRollbackTime = std::chrono::seconds(30);
constexpr auto kNoWayBackTime = std::chrono::seconds(60); // for a destination that alone can run the guest
constexpr auto kCloseTime = std::chrono::seconds(1);      // between the end of a monitor and of its process
constexpr auto kProbationStep = std::chrono::milliseconds(100);

} // namespace

QemuUpdate::QemuUpdate(Context context, UpdateRequest request, std::string id)
    : at_(std::move(context)), request_(std::move(request)),
      log_(request_, std::move(id), at_.source.recorded(), at_.hooks.on_phase),
      deadline_(Deadline::after(request_.timeout)) {}

UpdateRecord QemuUpdate::run() {
    const auto result = [&]() -> Result<void> {
        TRY(negotiate());
        TRY(prepare());
        if (request_.kind == UpdateKind::kPlan) return {};
        TRY(switch_over());
        TRY(commit());
        TRY(fetch_pages());
        move_places();
        TRY(watch_probation());
        return {};
    }();
    if (!result) {
        end_with(result.error());
    } else if (request_.kind == UpdateKind::kPlan) {
        log_.record().outcome = Outcome::kPlanned;
        destination_.kill();
    } else {
        complete();
    }
    return log_.finish();
}

Result<void> QemuUpdate::negotiate() {
    log_.enter(Phase::kNegotiating);
    TRY(check_source());
    TRY(spawn_destination(QemuProcess::Role::kIncoming));
    log_.record().to.version = destination_.monitor().version();
    return reach(Phase::kNegotiating);
}

Result<void> QemuUpdate::spawn_destination(QemuProcess::Role role) {
    destination_.kill();
    TRY_ASSIGN(destination_, QemuProcess::spawn(request_.binary, at_.guest.arguments, role,
                                 handoff::next_participant(at_.source.participant()), at_.folder,
                                 at_.guest.fds(), deadline_, at_.hooks.cancel_fd));
    at_.hooks.shelter({destination_.pid(), destination_.pidfd(), destination_.session_file()});
    return {};
}

// What would make the source refuse later is told before anything is started.
Result<void> QemuUpdate::check_source() {
    const Deadline deadline = Deadline::after(kAnswerTime);
    TRY_ASSIGN(const RunState state, run_state(at_.source, deadline).context("the source"));
    if (!state.running)
        return Error(ErrorCode::kRefused, "the guest does not run: QEMU says it is " + state.status);
    auto places = places_of(at_.source, at_.config, at_.guest.arguments, deadline);
    if (!places) return std::move(places).error().context("the source");
    places_ = std::move(*places);
    return check_disks(at_.source, deadline);
}

Result<void> QemuUpdate::choose() {
    const int cancel = at_.hooks.cancel_fd;
    std::optional<Way> asked_for;
    if (!request_.way.empty()) {
        asked_for = parse_way(request_.way);
        if (!asked_for)
            return Error(
                ErrorCode::kRefused, "there is no way '" + request_.way + "'; there are " + names_of_ways());
    }
    TRY(back_to_common_mode(at_.source, deadline_, cancel).context("the source"));
    TRY_ASSIGN(const GuestFacts guest, facts_of(at_.source, deadline_, cancel).context("the source"));
    const Modes modes =
        guest.aux_ram_is_shared || asked_for == Way::kCprTransfer ? Modes::kAsk : Modes::kPassOver;
    TRY_ASSIGN(const Offer here, offer_of(at_.source, modes, deadline_, cancel).context("the source"));
    TRY_ASSIGN(
        const Offer there, offer_of(destination_, modes, deadline_, cancel).context("the destination"));
    TRY_ASSIGN(ChosenWay chosen, choose_way(here, there, guest, asked_for));
    log_.record().way = to_string(chosen.way);
    log_.record().way_why = std::move(chosen.why);
    transfer_.emplace(chosen.way, at_.source, destination_, at_.folder);
    return {};
}

Result<void> QemuUpdate::warn_of_deprecation() {
    TRY_ASSIGN(const std::string type, machine_type(destination_, deadline_));
    TRY_ASSIGN(const bool deprecated, is_deprecated(destination_, type, deadline_));
    if (deprecated) log_.record().notes.push_back(deprecation_note(type, destination_.monitor().version()));
    return {};
}

// The destination that is compared waits for nobody yet. One of cpr-transfer cannot be asked anything before
// the source migrates to it, so it is another process, of the same binary and arguments.
Result<void> QemuUpdate::prepare() {
    log_.enter(Phase::kPreparing);
    const int cancel = at_.hooks.cancel_fd;
    TRY(choose());
    TRY(compare_guests(at_.source, destination_, deadline_, cancel));
    TRY(warn_of_deprecation().context("the destination"));
    const Way way = transfer_->way();
    TRY(set_capabilities(at_.source, way, deadline_, cancel).context("the source"));
    TRY(set_capabilities(destination_, way, deadline_, cancel).context("the destination"));
    if (request_.kind != UpdateKind::kPlan) {
        if (way == Way::kCprTransfer) TRY(spawn_destination(QemuProcess::Role::kCpr));
        TRY(transfer_->set_up(deadline_, cancel));
    }
    return reach(Phase::kPreparing);
}

// From here on nothing is cancelled.
Result<void> QemuUpdate::switch_over() {
    log_.enter(Phase::kPausing);
    // What an earlier update has left; an end of the guest is news.
    std::erase_if(at_.source.monitor().events(), [](const QmpEvent& e) { return e.name != "SHUTDOWN"; });
    if (!at_.guest.baton->offer(at_.source.participant(), destination_.participant()))
        return Error(ErrorCode::kInternal, "the source does not hold the guest");
    offered_ = true;
    TRY(reach(Phase::kPausing));
    TRY(transfer_->begin(Deadline::after(kAnswerTime)));
    TRY(await_transfer());
    return reach(Phase::kTransferring);
}

Result<void> QemuUpdate::await_transfer() {
    const Deadline begin = Deadline::after(kStartTime);
    std::optional<Deadline> limit; // from the guest's stop, or from where there is no way back
    bool past_return = false;
    for (;;) {
        TRY(look());
        if (transfer_->loaded()) return {};
        if (transfer_->stopped_us() && !limit) limit = Deadline::after(at_.config.blackout_limit);
        if (transfer_->past_return() && !std::exchange(past_return, true))
            limit = Deadline::after(kNoWayBackTime);
        if (limit ? limit->passed() : begin.passed())
            return Error(ErrorCode::kTimeout,
                past_return ? "the destination does not take the guest, and there is no way back"
                : limit     ? "the guest stood still for longer than blackout_limit"
                            : "QEMU did not stop the guest in time");
        transfer_->wait(limit.value_or(begin));
    }
}

// A source that is dead is not missed by a destination that has all of the guest.
Result<void> QemuUpdate::look() {
    auto looked = transfer_->look();
    if (looked || !transfer_->source_is_gone()) return looked;
    if (!at_.source.await_end(Deadline::after(kCloseTime))) return looked;
    if (!transfer_->settle_without_source(Deadline::after(kNoWayBackTime))) return looked;
    return {};
}

Result<void> QemuUpdate::commit() {
    if (!at_.guest.baton->take(destination_.participant()))
        return Error(ErrorCode::kInternal, "the guest is not on offer to the destination");
    TRY(reach(Phase::kCommitting));
    auto runs = let_run();
    // QEMU sends the event before any vCPU runs. Where it has not come, its end makes sure that nothing runs.
    if (!runs && !transfer_->resumed_us()) {
        destination_.kill();
        transfer_->look_at_destination();
    }
    ran_ = runs || transfer_->resumed_us();
    if (!runs) return std::move(runs).error().context("let the destination run the guest");
    log_.enter(Phase::kProbation);
    const auto &stopped = transfer_->stopped_us(), &resumed = transfer_->resumed_us();
    if (stopped && resumed && *resumed >= *stopped) log_.record().blackout_us = *resumed - *stopped;
    return {};
}

Result<void> QemuUpdate::let_run() {
    // Sent together: the guest stands still. A console that is not connected is no reason to hold it up.
    const Deadline deadline = Deadline::after(kAnswerTime);
    const json backend = at_.guest.console_backend();
    if (!backend.is_null())
        static_cast<void>(destination_.monitor().send(
            "chardev-change", {{"id", kConsoleId}, {"backend", backend}}, deadline));
    TRY(destination_.execute("cont", nullptr, deadline));
    transfer_->look_at_destination();
    // One that was still busy with the device state runs the guest as soon as it has all of it.
    const Deadline limit = Deadline::after(kNoWayBackTime);
    while (!transfer_->resumed_us()) {
        if (!destination_.alive()) return Error(ErrorCode::kPeerGone, "it has ended");
        if (limit.passed()) return Error(ErrorCode::kTimeout, "it does not run it");
        transfer_->wait(limit.earlier(Deadline::after(kProbationStep)));
        transfer_->look_at_destination();
    }
    if (!destination_.alive()) return Error(ErrorCode::kPeerGone, "it has ended");
    return {};
}

// Both QEMUs are needed for as long as it takes: no deadline makes it better. Afterwards the source has
// nothing any more that could be gone back to.
Result<void> QemuUpdate::fetch_pages() {
    while (!transfer_->finished()) {
        TRY(look().context("the guest's pages"));
        if (transfer_->finished()) break;
        transfer_->wait(Deadline::after(kProbationStep));
    }
    if (const auto us = downtime_us(at_.source, Deadline::after(kAnswerTime)))
        log_.record().vmm_downtime_us = *us;
    at_.source.end(Deadline::after(kEndTime));
    return {};
}

// The source has ended, and listens no more. A guest that cannot be reached is no reason to end it.
void QemuUpdate::move_places() {
    if (!destination_.alive()) return;
    const MovedPlaces places = std::exchange(places_, {}); // once
    for (const Error& missed : give_places(destination_, places, Deadline::after(kAnswerTime)))
        log_.record().notes.push_back(missed.message);
}

Result<void> QemuUpdate::watch_probation() {
    TRY(reach(Phase::kProbation));
    const Deadline end = Deadline::after(at_.config.probation);
    do {
        TRY_ASSIGN(
            const RunState state, run_state(destination_, Deadline::after(kAnswerTime)).context("probation"));
        if (state.status == "internal-error" || state.status == "guest-panicked")
            return Error(ErrorCode::kRefused, "the guest failed in the destination: " + state.status);
        if (state.status == "shutdown") return {}; // its own end
        pollfd polled{destination_.pidfd(), POLLIN, 0};
        ::poll(&polled, 1, Deadline::after(kProbationStep).earlier(end).poll_ms());
    } while (!end.passed());
    return {};
}

void QemuUpdate::complete() {
    log_.record().outcome = Outcome::kCompleted;
    previous_ = at_.source.take_binary();
    at_.source = std::move(destination_);
    log_.enter(Phase::kCompleted);
}

Outcome QemuUpdate::outcome_before_pause(const Error& error) const {
    switch (error.code) {
    case ErrorCode::kAborted:
    case ErrorCode::kInternal:
    case ErrorCode::kSystem:
        return Outcome::kAbandoned;
    // A destination that dies or hangs before it has answered is no QEMU for this guest; later it is a fault.
    case ErrorCode::kTimeout:
    case ErrorCode::kPeerGone:
        return log_.phase() == Phase::kNegotiating && !destination_ ? Outcome::kRefused : Outcome::kAbandoned;
    default:
        return Outcome::kRefused;
    }
}

void QemuUpdate::end_with(const Error& error) {
    log_.record().reason = error.message;
    see_whether_it_ran();
    if (ran_) return end_after_commit(error);
    const bool died = destination_ && !destination_.alive();
    // First of all: what is gone cannot run the guest, and a migration to it is over.
    destination_.kill();
    if (const auto& how = destination_.how_it_ended(); died && error.message.find(how) == std::string::npos)
        log_.record().reason += " (the destination " + how + ")";
    if (!at_.source.alive() || pages_are_lost() || has_resumed()) {
        log_.record().outcome = Outcome::kLost;
        lose(error);
        log_.enter(Phase::kFailed);
        return;
    }
    const bool stopped = transfer_ && transfer_->stopped_us();
    log_.record().outcome = stopped ? Outcome::kRolledBack : outcome_before_pause(error);
    if (offered_) {
        if (auto back = take_back(); !back) {
            log_.record().outcome = Outcome::kFailed;
            log_.record().reason += "; and the source does not take the guest back: " + back.error().message;
            log_.enter(Phase::kFailed);
            return;
        }
    }
    log_.enter(Phase::kAbandoned);
}

// QEMU says so before any vCPU runs, and what it said stays when it has ended.
bool QemuUpdate::has_resumed() {
    if (!offered_ || !transfer_) return false;
    transfer_->look_at_destination();
    return transfer_->resumed_us().has_value();
}

// Whoever speaks to a second monitor of the guest's may have let it run before the commit.
void QemuUpdate::see_whether_it_ran() {
    if (ran_ || !has_resumed()) return;
    const bool owns = at_.guest.baton->read().owner == destination_.participant();
    if (!owns && !at_.guest.baton->take(destination_.participant())) return;
    ran_ = true;
    log_.record().reason += " (but somebody else had let the destination run the guest, and it stays there)";
}

// The destination has run the guest: what the source has is old, or not all of it.
void QemuUpdate::end_after_commit(const Error& error) {
    if (!transfer_->finished() && !transfer_->settle_without_source(Deadline::after(kNoWayBackTime)))
        destination_.kill(); // it lacks pages
    at_.source.kill();
    move_places();
    const bool lives = destination_.alive();
    log_.record().outcome = lives ? Outcome::kFailed : Outcome::kLost;
    at_.source = std::move(destination_);
    if (!lives) lose(error);
    log_.enter(Phase::kFailed);
}

// The destination is dead. Of a migration that was in postcopy QEMU says "failed" when it had not given a
// page away yet; and the guest was never let run by anybody else.
bool QemuUpdate::pages_are_lost() {
    if (!transfer_ || transfer_->way() != Way::kPostcopy || !offered_) return false;
    const auto all = has_all_pages(at_.source, Deadline::after(kAnswerTime));
    return !all || !*all;
}

// Ends the source, if it lives: nobody can run the guest.
void QemuUpdate::lose(const Error& error) {
    at_.source.kill();
    if (const auto& how = at_.source.how_it_ended();
        !how.empty() && error.message.find(how) == std::string::npos)
        log_.record().reason += " (QEMU " + how + ")";
}

// The destination is dead and has never run the guest.
Result<void> QemuUpdate::take_back() {
    const handoff::Participant source = at_.source.participant();
    const handoff::BatonWord word = at_.guest.baton->read();
    const bool back = word.state == handoff::BatonState::kOffered ? at_.guest.baton->take_back(source)
                                                                  : at_.guest.baton->seize(word, source);
    if (!back) return Error(ErrorCode::kInternal, "the baton is " + to_string(word));
    return make_run(at_.source, Deadline::after(kRollbackTime));
}

// The supervisor does all that happens here, so every fault is one of its own making.
Result<void> QemuUpdate::reach(Phase phase) {
    if (!request_.fault || request_.fault->phase != phase) return {};
    pid_t victim = ::getpid();
    if (request_.fault->victim == Party::kSource) victim = at_.source.pid();
    if (request_.fault->victim == Party::kDestination) victim = destination_.pid();
    return handoff::FaultPoint(phase, request_.fault->action, victim).reached(phase);
}

} // namespace liveupdate::supervisor::qemu
