#include "supervisor/qemu/qemu_update.hpp"

#include <poll.h>
#include <unistd.h>

#include "supervisor/qemu/command_line.hpp"
#include "supervisor/qemu/compare.hpp"
#include "supervisor/qemu/disks.hpp"
#include "supervisor/qemu/run_state.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

using handoff::Party;
using handoff::Phase;
using nlohmann::json;

constexpr auto kAnswerTime = std::chrono::seconds(5); // for answers that need no work
constexpr auto kStartTime = std::chrono::seconds(2);  // from the order to migrate to the guest's stop
constexpr auto kEndTime = std::chrono::seconds(10);   // for a source to close its images
constexpr auto kRollbackTime = std::chrono::seconds(30);
constexpr auto kProbationStep = std::chrono::milliseconds(100);

handoff::Participant next_participant(handoff::Participant current) {
    return static_cast<handoff::Participant>(current % handoff::kMaxParticipant + 1);
}

Result<void> set_capabilities(QemuProcess& qemu, Deadline deadline, int cancel_fd) {
    json all = json::array();
    for (const char* name : {"events", "x-ignore-shared", "late-block-activate"})
        all.push_back({{"capability", name}, {"state", true}});
    TRY(qemu.execute("migrate-set-capabilities", {{"capabilities", std::move(all)}}, deadline, cancel_fd));
    return {};
}

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
    TRY_ASSIGN(destination_, QemuProcess::spawn(request_.binary, at_.guest.arguments,
                                 QemuProcess::Role::kIncoming, next_participant(at_.source.participant()),
                                 at_.folder, at_.guest.fds(), deadline_, at_.hooks.cancel_fd));
    at_.hooks.shelter({destination_.pid(), destination_.pidfd()});
    log_.record().to.version = destination_.monitor().version();
    return reach(Phase::kNegotiating);
}

// What would make the source refuse later is told before anything is started.
Result<void> QemuUpdate::check_source() {
    const Deadline deadline = Deadline::after(kAnswerTime);
    TRY_ASSIGN(const RunState state, run_state(at_.source, deadline).context("the source"));
    if (!state.running)
        return Error(ErrorCode::kRefused, "the guest does not run: QEMU says it is " + state.status);
    TRY_ASSIGN(const json migration, at_.source.execute("query-migrate", nullptr, deadline));
    const auto blocked = migration.find("blocked-reasons");
    if (blocked != migration.end() && blocked->is_array() && !blocked->empty() &&
        blocked->front().is_string())
        return Error(
            ErrorCode::kRefused, "QEMU cannot migrate this guest: " + blocked->front().get<std::string>());
    return check_disks(at_.source, deadline);
}

Result<void> QemuUpdate::prepare() {
    log_.enter(Phase::kPreparing);
    const int cancel = at_.hooks.cancel_fd;
    TRY(compare_guests(at_.source, destination_, deadline_, cancel));
    TRY(set_capabilities(at_.source, deadline_, cancel).context("the source"));
    TRY(set_capabilities(destination_, deadline_, cancel).context("the destination"));
    if (request_.kind != UpdateKind::kPlan) {
        // As much at once as there is; the time is the guest's.
        TRY(at_.source.execute(
            "migrate-set-parameters", {{"max-bandwidth", int64_t{1} << 40}}, deadline_, cancel));
        TRY(destination_.execute(
            "migrate-incoming", {{"uri", "unix:" + at_.folder.migration_socket()}}, deadline_, cancel));
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
    TRY(at_.source.execute(
        "migrate", {{"uri", "unix:" + at_.folder.migration_socket()}}, Deadline::after(kAnswerTime)));
    TRY(await_transfer());
    return reach(Phase::kTransferring);
}

// Until the source has sent all of the guest, and the destination has loaded it.
Result<void> QemuUpdate::await_transfer() {
    const Deadline begin = Deadline::after(kStartTime);
    std::optional<Deadline> limit; // from the guest's stop
    for (;;) {
        TRY(note_events(at_.source, source_completed_).context("the source"));
        TRY(note_events(destination_, destination_completed_).context("the destination"));
        if (source_completed_ && destination_completed_) return {};
        if (stopped_us_ && !limit) limit = Deadline::after(at_.config.blackout_limit);
        if (limit ? limit->passed() : begin.passed())
            return Error(ErrorCode::kTimeout, stopped_us_
                                                  ? "the guest stood still for longer than blackout_limit"
                                                  : "QEMU did not stop the guest in time");
        pollfd polled[] = {{at_.source.monitor().fd(), POLLIN, 0}, {destination_.monitor().fd(), POLLIN, 0}};
        ::poll(polled, 2, limit.value_or(begin).poll_ms());
    }
}

// Takes what one of them has said; false when nothing. An error: its migration has failed, or it has ended.
Result<bool> QemuUpdate::note_events(QemuProcess& qemu, bool& completed) {
    const auto arrived = qemu.monitor().take_arrived();
    bool any = false;
    for (; !qemu.monitor().events().empty(); qemu.monitor().events().pop_front(), any = true) {
        const QmpEvent& event = qemu.monitor().events().front();
        const std::string status = word_in(event.data, "status");
        if (event.name == "STOP" && &qemu == &at_.source) stopped_us_ = event.unix_us;
        if (event.name == "RESUME" && &qemu == &destination_) resumed_us_ = event.unix_us;
        if (event.name == "SHUTDOWN") // which stays, for whoever listens after the update
            return Error(ErrorCode::kRefused, "the guest ended while it was being updated");
        if (event.name != "MIGRATION") continue;
        if (status == "completed") completed = true;
        if (status == "failed" || status == "cancelled")
            return Error(ErrorCode::kRefused, "QEMU's migration is " + status);
    }
    // One that has done its part is not needed any more.
    if (!arrived && !completed) return arrived.error();
    return any;
}

Result<void> QemuUpdate::commit() {
    if (!at_.guest.baton->take(destination_.participant()))
        return Error(ErrorCode::kInternal, "the guest is not on offer to the destination");
    TRY(reach(Phase::kCommitting));
    // Sent together: the guest stands still. A console that is not connected is no reason to hold it up.
    const Deadline deadline = Deadline::after(kAnswerTime);
    const json backend = at_.guest.console_backend();
    if (!backend.is_null())
        static_cast<void>(destination_.monitor().send(
            "chardev-change", {{"id", kConsoleId}, {"backend", backend}}, deadline));
    const auto answer = destination_.execute("cont", nullptr, deadline);
    // QEMU sends the event before any vCPU runs. Where neither came, its end makes sure that nothing runs.
    bool ignored = true;
    static_cast<void>(note_events(destination_, ignored));
    if (!answer && !resumed_us_) {
        destination_.kill();
        static_cast<void>(note_events(destination_, ignored));
    }
    ran_ = answer || resumed_us_;
    if (!ran_ || !destination_.alive()) {
        const Error error = answer ? Error(ErrorCode::kPeerGone, "it has ended") : answer.error();
        return Error(error).context("let the destination run the guest");
    }
    log_.enter(Phase::kProbation);
    note_blackout();
    at_.source.end(Deadline::after(kEndTime)); // it has nothing any more that could be gone back to
    return {};
}

void QemuUpdate::note_blackout() {
    if (stopped_us_ && resumed_us_ && *resumed_us_ >= *stopped_us_)
        log_.record().blackout_us = *resumed_us_ - *stopped_us_;
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
    if (ran_) {
        const bool lives = destination_.alive();
        log_.record().outcome = lives ? Outcome::kFailed : Outcome::kLost;
        at_.source.kill();
        at_.source = std::move(destination_);
        if (!lives) lose(error);
        log_.enter(Phase::kFailed);
        return;
    }
    const bool died = destination_ && !destination_.alive();
    // First of all: what is gone cannot run the guest, and a migration to it is over.
    destination_.kill();
    if (const auto& how = destination_.how_it_ended(); died && error.message.find(how) == std::string::npos)
        log_.record().reason += " (the destination " + how + ")";
    if (!at_.source.alive()) {
        log_.record().outcome = Outcome::kLost;
        lose(error);
        log_.enter(Phase::kFailed);
        return;
    }
    log_.record().outcome = stopped_us_ ? Outcome::kRolledBack : outcome_before_pause(error);
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

// at_.source is dead.
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
