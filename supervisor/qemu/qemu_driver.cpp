#include "supervisor/qemu/qemu_driver.hpp"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <thread>

#include "handoff/base/fd.hpp"
#include "supervisor/kept_vmms.hpp"
#include "supervisor/qemu/adopted.hpp"
#include "supervisor/qemu/command_line.hpp"
#include "supervisor/qemu/living_qemus.hpp"
#include "supervisor/qemu/moved_places.hpp"
#include "supervisor/qemu/qemu_restore.hpp"
#include "supervisor/qemu/qemu_save.hpp"
#include "supervisor/qemu/qemu_update.hpp"
#include "supervisor/qemu/recovery.hpp"
#include "supervisor/qemu/run_state.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

constexpr auto kLaunchTime = std::chrono::seconds(30);
constexpr auto kAnswerTime = std::chrono::seconds(5);
constexpr auto kFindTime = std::chrono::seconds(5);
constexpr auto kOthersEndTime = std::chrono::seconds(3); // of QEMUs that are about to end
constexpr auto kLook = std::chrono::milliseconds(50);
constexpr auto kQuitTime = std::chrono::seconds(2);
constexpr auto kPagesTime =
    std::chrono::seconds(60); // for the pages of an update by postcopy; then once more
constexpr handoff::Participant kFirst = 1, kNone = 0;

bool may_have_guest(const handoff::BatonWord& word, handoff::Participant participant) {
    const bool offered = word.state == handoff::BatonState::kOffered;
    return word.state != handoff::BatonState::kFree &&
           (word.owner == participant || (offered && word.heir == participant));
}

} // namespace

QemuDriver::QemuDriver(const VmConfig& config, const Paths& paths)
    : config_(config), paths_(paths), folder_(paths.vm_runtime_dir(config.name) + "/qemu") {}

// Of all QEMUs that a former supervisor has left, the owner runs the guest and all others end. Who neither
// has the guest nor is offered it is not spoken to: it may be one that cannot answer, and need not.
Result<Adoption> QemuDriver::adopt(const handoff::NamedFds& kept) {
    TRY(folder_.make());
    const Deadline settled = Deadline::after(kOthersEndTime);
    for (bool anybody = true; anybody && !vmm_;) {
        end_waiting_destination(folder_);
        TRY_ASSIGN(const auto adopted, find_adopted(folder_.path()));
        if (!adopted) drop_adopted(folder_.path()); // of one that has ended
        std::vector<QemuProcess> found;
        Result<void> done;
        // Any of them may run the guest: a second one beside it would be worse than none.
        const auto take = [&](Result<QemuProcess> process, pid_t pid) {
            if (process)
                found.push_back(std::move(*process));
            else if (process.error().code != ErrorCode::kNotFound)
                done = Error(process.error().code, "the QEMU with pid " + std::to_string(pid) +
                                                       " lives, but cannot be adopted (" +
                                                       process.error().message + "); end it, or wait");
        };
        std::vector<LivingQemu> living = living_qemus(folder_, kept);
        const auto word = word_of(living);
        for (LivingQemu& each : living) {
            if (word && !may_have_guest(*word, each.participant)) continue;
            const pid_t pid = each.pid;
            take(QemuProcess::find(std::move(each), Deadline::after(kFindTime)), pid);
        }
        if (adopted) take(QemuProcess::find(*adopted, folder_, Deadline::after(kFindTime)), adopted->pid);
        const bool missing = adopted && std::none_of(found.begin(), found.end(), [](const auto& each) {
            return each.participant() == kAdoptedParticipant;
        });
        if (done && missing && found.empty() && !settled.passed()) {
            std::this_thread::sleep_for(kLook); // it may be on its way out
            continue;
        }
        if (done && missing)
            done = Error(ErrorCode::kBusy,
                "the QEMU that was adopted lives (pid " + std::to_string(adopted->pid) +
                    "), but does not listen at its monitor any more; end it, or put its socket back");
        if (done)
            done = take_owner(std::move(found), kept);
        else
            for (QemuProcess& process : found)
                process.forget();
        TRY(done);
        if (vmm_) break;
        TRY_ASSIGN(const bool nobody, folder_.nobody_lives(Deadline::after(kLook)));
        anybody = !nobody;
        if (anybody && settled.passed())
            return Error(ErrorCode::kBusy, "a QEMU of this VM lives that nobody can speak to, since another "
                                           "version of liveupdate has started it or it belongs to another "
                                           "user; a second one is not started beside it");
    }
    if (vmm_) return Adoption::kAdopted;
    TRY(await_end_of_kept(kept, settled, folder_.path()));
    return kept.contains("baton") ? Adoption::kEnded : Adoption::kNobody;
}

// Which of them the guest's word names, to vmm_; none when the guest is nobody's.
Result<void> QemuDriver::find_owner(std::vector<QemuProcess>& found, const handoff::NamedFds& kept) {
    // One that somebody else has started knows no word: it is asked last.
    std::stable_partition(found.begin(), found.end(), [](const auto& each) { return !each.is_adopted(); });
    for (QemuProcess& process : found) {
        if (!process.is_adopted() || !guest_) {
            TRY_ASSIGN(auto guest, QemuGuest::from(process, kept, Deadline::after(kAnswerTime)));
            if (!guest) continue;
            guest_ = std::move(*guest);
        }
        const handoff::BatonWord word = guest_->baton->read();
        if (word.state != handoff::BatonState::kFree && word.owner == process.participant())
            vmm_ = std::move(process);
    }
    if (!vmm_ && guest_) TRY(find_heir(found));
    if (vmm_) TRY(see_whether_heir_runs(found));
    return {};
}

// Whoever speaks to a second monitor of the guest's may have let the guest run where it was on offer to.
Result<void> QemuDriver::see_whether_heir_runs(std::vector<QemuProcess>& found) {
    const handoff::BatonWord word = guest_->baton->read();
    const auto heir = std::find_if(found.begin(), found.end(),
        [&](const auto& each) { return each && each.participant() == word.heir; });
    if (word.state != handoff::BatonState::kOffered || heir == found.end()) return {};
    const auto state = run_state(*heir, Deadline::after(kAnswerTime));
    if (!state || !state->running) return {};
    if (!guest_->baton->take(word.heir))
        return Error(ErrorCode::kInternal, "the guest was taken while nobody was there to take it");
    spdlog::warn(
        "{}: somebody else has let the guest run in the QEMU that it was on offer to; it stays there",
        config_.name);
    std::swap(vmm_, *heir);
    return {};
}

// The guest was on offer, and its owner has died: it lives where all of it has come.
Result<void> QemuDriver::find_heir(std::vector<QemuProcess>& found) {
    const handoff::BatonWord word = guest_->baton->read();
    const auto heir = std::find_if(
        found.begin(), found.end(), [&](const auto& each) { return each.participant() == word.heir; });
    if (word.state != handoff::BatonState::kOffered || heir == found.end()) return {};
    TRY_ASSIGN(const bool whole, has_come_whole(*heir, Deadline::after(kPagesTime)));
    if (!whole) return {};
    if (!guest_->baton->take(word.heir))
        return Error(ErrorCode::kInternal, "the guest was taken while nobody was there to take it");
    spdlog::warn("{}: the QEMU that had the guest has died in an update; the other one has all of it, and "
                 "runs it on",
        config_.name);
    vmm_ = std::move(*heir);
    return {};
}

Result<void> QemuDriver::take_owner(std::vector<QemuProcess> found, const handoff::NamedFds& kept) {
    const auto fail = [&](Error error) {
        for (QemuProcess& process : found)
            process.forget(); // one of them may run the guest, whatever is wrong with it or with us
        vmm_.forget();
        guest_.reset();
        return error;
    };
    if (auto owner = find_owner(found, kept); !owner) return fail(std::move(owner).error());
    if (!vmm_) {
        found.clear(); // none of these may run the guest
        end_all_beside(folder_, kept, kNone);
        guest_.reset();
        return {};
    }
    const auto rest = std::find_if(found.begin(), found.end(), [](const auto& each) { return bool(each); });
    QemuProcess* const other = rest == found.end() ? nullptr : &*rest;
    const auto owner = settle_postcopy(vmm_, other, *guest_->baton, Deadline::after(kPagesTime));
    if (!owner) return fail(owner.error());
    if (*owner == PostcopyOwner::kOther) std::swap(vmm_, *other);
    if (*owner == PostcopyOwner::kNobody) {
        spdlog::error(
            "{}: an update by postcopy was cut short, and pages of the guest's RAM with it", config_.name);
        found.clear();
        vmm_.kill();
        guest_.reset();
        return {};
    }
    const handoff::BatonWord word = guest_->baton->read();
    // The others end before the owner is made to run: a migration that was under way is over then.
    for (QemuProcess& process : found)
        if (process) process.kill();
    end_all_beside(folder_, kept, vmm_.participant());
    if (word.state == handoff::BatonState::kOffered && !guest_->baton->take_back(word.owner))
        return fail({ErrorCode::kInternal, "the guest was taken while nobody was there to take it"});
    // A supervisor that died between the word and the guest's first instruction has not come to this.
    if (auto there = attach_console(vmm_, guest_->console_backend(), Deadline::after(kAnswerTime)); !there)
        spdlog::warn("{}: the guest has no console: {}", config_.name, there.error().message);
    if (auto runs = make_run(vmm_, Deadline::after(kAnswerTime)); !runs) {
        vmm_.forget();
        guest_.reset();
        return std::move(runs).error().context("the QEMU that has the guest");
    }
    // One that died between the end of an update's source and this has left it undone.
    for (const Error& missed :
        complete_places(vmm_, config_, guest_->arguments, Deadline::after(kAnswerTime)))
        spdlog::warn("{}: {}", config_.name, missed.message);
    return {};
}

Result<void> QemuDriver::check_nobody_lives() const {
    TRY(folder_.make());
    TRY_ASSIGN(const bool nobody, folder_.nobody_lives(Deadline::after(kOthersEndTime)));
    if (nobody) return {};
    return Error(ErrorCode::kBusy, "a QEMU of this VM lives; a second one is not started beside it");
}

Result<void> QemuDriver::launch(const Shelter& shelter) {
    TRY(check_nobody_lives());
    TRY_ASSIGN(const OpenBinary binary, OpenBinary::open(config_.vmm_binary));
    auto started = start_pinned(binary, shelter);
    if (started) return started;
    kill();
    return std::move(started).error().context("start the guest");
}

// The first start of all finds out what the machine's alias stands for, and starts once more with that.
Result<void> QemuDriver::start_pinned(const OpenBinary& binary, const Shelter& shelter) {
    const Deadline deadline = Deadline::after(kLaunchTime);
    TRY_ASSIGN(std::string wanted, pinned_machine(config_, paths_));
    for (;;) {
        TRY_ASSIGN(guest_, QemuGuest::create(config_, paths_, wanted, RamSpace::kSetAside));
        TRY_ASSIGN(vmm_, QemuProcess::spawn(binary, guest_->arguments, QemuProcess::Role::kFirst, kFirst,
                             folder_, guest_->fds(), deadline, -1));
        if (!config_.qemu.command_line.empty()) break; // it says exactly which
        TRY_ASSIGN(const std::string type, machine_type(vmm_, deadline));
        if (type == wanted) break;
        spdlog::info("{}: the machine '{}' is pinned to '{}'", config_.name, wanted, type);
        wanted = type;
        vmm_.kill();
        guest_.reset();
    }
    if (config_.qemu.command_line.empty()) {
        TRY(pin_machine(config_, paths_, wanted));
        TRY_ASSIGN(const bool deprecated, is_deprecated(vmm_, wanted, deadline));
        if (deprecated)
            spdlog::warn("{}: {}", config_.name, deprecation_note(wanted, vmm_.monitor().version()));
    }
    shelter({vmm_.pid(), vmm_.pidfd(), vmm_.session_file()});
    TRY(attach_console(vmm_, guest_->console_backend(), deadline));
    const auto missed = complete_places(vmm_, config_, guest_->arguments, deadline);
    if (!missed.empty()) return missed.front();
    if (!guest_->baton->claim(kFirst)) return Error(ErrorCode::kInternal, "a fresh baton is not free");
    return make_run(vmm_, deadline);
}

RunningVmm QemuDriver::running() const {
    if (!vmm_) return {};
    return {vmm_.pid(), vmm_.recorded(), vmm_.started_unix()};
}

std::vector<int> QemuDriver::watched() const {
    if (!vmm_) return {};
    return {vmm_.pidfd(), vmm_.monitor().fd()};
}

bool QemuDriver::take_news(std::deque<GuestNews>& news) {
    const auto arrived = vmm_.monitor().take_arrived();
    bool stopped = false;
    for (const QmpEvent& event : vmm_.monitor().events()) {
        if (event.name == "SHUTDOWN") {
            const std::string reason = word_in(event.data, "reason");
            if (reason == "guest-reset")
                news.push_back({GuestNews::Kind::kReset});
            else
                news.push_back({GuestNews::Kind::kEnded, reason == "guest-shutdown"});
        } else if (event.name == "STOP") {
            stopped = true;
        } else if (event.name == "RESUME") {
            stopped = false;
        }
    }
    vmm_.monitor().events().clear();
    if (stopped && arrived && news.empty()) static_cast<void>(look_at_status(news));
    return arrived && vmm_.alive();
}

// The guest stands, and nobody has asked for it.
Result<void> QemuDriver::look_at_status(std::deque<GuestNews>& news) {
    TRY_ASSIGN(const RunState state, run_state(vmm_, Deadline::after(kAnswerTime)));
    if (state.status == "internal-error" || state.status == "guest-panicked")
        news.push_back({GuestNews::Kind::kFailed, false, 0, "QEMU stopped it: " + state.status});
    else if (!state.running)
        spdlog::warn("{}: QEMU has stopped the guest: {}", config_.name, state.status);
    return {};
}

bool QemuDriver::ask_to_end() {
    if (!vmm_) return false;
    return vmm_.execute("system_powerdown", nullptr, Deadline::after(kFindTime)).has_value();
}

void QemuDriver::end(Deadline deadline) {
    vmm_.end(deadline);
    drop_guest();
}

// In order, as far as QEMU lets one: it has images to close.
void QemuDriver::kill() {
    vmm_.end(Deadline::after(kQuitTime));
    drop_guest();
}

void QemuDriver::drop_guest() {
    if (!guest_) return;
    drop(std::move(*guest_));
    guest_.reset();
}

std::vector<handoff::FdToSend> QemuDriver::keepsakes() const {
    if (!vmm_ || !guest_) return {};
    std::vector<handoff::FdToSend> all{
        {kept_pidfd(vmm_.pid()), vmm_.pidfd()}, {"baton", guest_->baton_fd.get()}};
    if (const int session = vmm_.session_file(); session >= 0)
        all.push_back({kept_session(vmm_.pid()), session});
    if (guest_->ram) all.push_back({kRamId, guest_->ram.get()});
    return all;
}

// The image that a clone's RAM is mapped out of.
std::string QemuDriver::ram_origin() const {
    if (!guest_ || !guest_->ram || !maps_ram_privately(guest_->arguments)) return {};
    std::error_code problem;
    return std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(guest_->ram.get()), problem)
        .string();
}

UpdateResult QemuDriver::update(UpdateRequest request, std::string id, const UpdateHooks& hooks) {
    QemuUpdate update({config_, folder_, *guest_, vmm_, hooks}, std::move(request), std::move(id));
    UpdateResult result;
    result.record = update.run();
    result.previous = update.take_previous();
    return result;
}

Result<SaveReport> QemuDriver::save(SaveRequest request, const UpdateHooks& hooks) {
    return QemuSave({config_, folder_, *guest_, vmm_, hooks}, std::move(request)).run();
}

Result<RestoreReport> QemuDriver::restore(const RestoreRequest& request, const Shelter& shelter) {
    TRY(check_nobody_lives());
    TRY_ASSIGN(RestoredQemu restored, QemuRestore({config_, paths_, folder_, shelter}, request).run());
    guest_ = std::move(restored.guest);
    vmm_ = std::move(restored.vmm);
    return restored.report;
}

} // namespace liveupdate::supervisor::qemu
