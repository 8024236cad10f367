// What VmSupervisor shares with its service manager: what is kept for a successor, how a successor uses it,
// the status line, and the change to a newer supervisor.
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ctime>
#include <filesystem>

#include "liveupdate_version.hpp"
#include "supervisor/journal.hpp"
#include "supervisor/units.hpp"
#include "supervisor/vm.hpp"
#include "systemd/notify.hpp"

extern char** environ;

namespace liveupdate::supervisor {
namespace {

constexpr auto kAdoptTime = std::chrono::seconds(2);
constexpr auto kOthersEndTime = std::chrono::seconds(3); // of VMMs that have no guest and no supervisor
constexpr auto kStatusEvery = std::chrono::minutes(1);
constexpr const char* kDeleted = " (deleted)";

std::string path_of(int fd) {
    std::error_code problem;
    std::string path = std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd), problem);
    if (path.ends_with(kDeleted)) path.resize(path.size() - std::string_view(kDeleted).size());
    return path;
}

std::string ago(uint64_t unix_ms) {
    const int64_t seconds = std::time(nullptr) - static_cast<int64_t>(unix_ms / 1000);
    if (seconds < 60) return "less than a minute ago";
    return human_duration(std::chrono::minutes(seconds / 60)) + " ago";
}

// Of a request that no client has made: what became of an update is logged anyway.
class LogReply final : public ControlReply {
public:
    explicit LogReply(std::string vm_name) : vm_name_(std::move(vm_name)) {}
    void event(nlohmann::json) override {}
    void finish(nlohmann::json) override {}
    void fail(const Error& error) override { spdlog::warn("{}: {}", vm_name_, error.message); }
    void on_disconnect(std::function<void()>) override {}

private:
    const std::string vm_name_;
};

// A supervisor that cannot even tell its version would not find the guest either.
Result<void> try_out(const std::string& program) {
    std::string path = program, option = "--version";
    char* argv[] = {path.data(), option.data(), nullptr};
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    pid_t pid = -1;
    const int failed = ::posix_spawn(&pid, path.c_str(), &actions, nullptr, argv, environ);
    ::posix_spawn_file_actions_destroy(&actions);
    if (failed != 0) return Error(ErrorCode::kRefused, "start " + program, failed);
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
    return Error(ErrorCode::kRefused,
        program + " does not run on this host (`" + program + " --version` fails); install a whole one");
}

} // namespace

// Files and baton of the guest, from the VMM that runs it.
Result<void> VmSupervisor::take_over(VmmProcess& owner, const handoff::NamedFds& kept) {
    handoff::proto::Message message;
    message.mutable_adopt();
    TRY_ASSIGN(handoff::Received answer,
        owner.request(std::move(message), {}, handoff::proto::Message::kAdopted, Deadline::after(kAdoptTime))
            .context("adopt the VMM that runs the guest"));
    TRY_ASSIGN(files_, GuestFiles::adopt(answer.message.adopted().manifest(), std::move(answer.fds)));
    return check_against_kept(kept);
}

// The VMM gave these back; a VMM that was taken over by its guest must not give others than the guest's own.
Result<void> VmSupervisor::check_against_kept(const handoff::NamedFds& kept) const {
    for (const auto& ours : files_->to_send()) {
        const auto found = kept.find(ours.name);
        if (found == kept.end()) continue;
        struct stat before {
        }, now{};
        if (::fstat(found->second.get(), &before) < 0 || ::fstat(ours.fd, &now) < 0)
            return Error::from_errno("stat " + ours.name);
        if (before.st_dev != now.st_dev || before.st_ino != now.st_ino)
            return Error(ErrorCode::kProtocol,
                "the VMM gives back another '" + ours.name + "' than the guest was started with");
    }
    return {};
}

// None answers at a session socket as the guest's owner. Those that have no guest end by themselves.
Result<void> VmSupervisor::await_end_of_kept(const handoff::NamedFds& kept) const {
    const Deadline deadline = Deadline::after(kOthersEndTime);
    for (const auto& [name, file] : kept) {
        if (!name.starts_with("vmm-")) continue;
        pollfd polled{file.get(), POLLIN, 0};
        while (::poll(&polled, 1, deadline.poll_ms()) < 0 && errno == EINTR) {
        }
        if (!fd::process_gone(file.get()))
            return Error(ErrorCode::kBusy, "the VMM with pid " + name.substr(4) +
                                               " lives, but nobody answers at its session socket in " +
                                               paths_.vm_runtime_dir(config_.name) +
                                               "; a second one is not started beside it");
    }
    return {};
}

void VmSupervisor::take_previous(handoff::NamedFds& kept) {
    const auto found = kept.find("previous");
    if (found == kept.end()) return;
    auto info = inspect_binary_fd(found->second.get(), path_of(found->second.get()));
    if (!info) return;
    for (const UpdateRecord& record : history_.newest(kHistoryKept)) {
        if (record.from.build_id != info->build_id || record.outcome != Outcome::kCompleted) continue;
        previous_version_ = record.from.version;
        break;
    }
    previous_ = OpenBinary{std::move(*info), std::move(found->second)};
}

std::vector<handoff::FdToSend> VmSupervisor::keepsakes() const {
    std::vector<handoff::FdToSend> all;
    if (listener_ >= 0) all.push_back({"control", listener_});
    if (!vmm_ || !files_) return all;
    const std::string number = std::to_string(vmm_.pid());
    all.push_back({"vmm-" + number, vmm_.pidfd()});
    all.push_back({"session-" + number, vmm_.session_file()});
    all.push_back({"baton", files_->baton_fd.get()});
    for (const auto& block : handoff::fds_of(files_->manifest))
        all.push_back(block);
    if (previous_) all.push_back({"previous", previous_->file.get()});
    return all;
}

void VmSupervisor::keep_for_successor() {
    service_.keep(keepsakes());
}

void VmSupervisor::listen_on(int listener) {
    listener_ = listener;
    keep_for_successor();
    tell_status();
    service_.ready();
}

void VmSupervisor::reload() {
    if (state_ == State::kStopping || state_ == State::kStopped) return;
    service_.reloading();
    begin_update({{"kind", "update"}, {"if_outdated", true}}, std::make_shared<LogReply>(config_.name));
    if (state_ != State::kUpdating) service_.ready(); // else the update's end says it
}

std::string VmSupervisor::status_line() const {
    const std::string last = [&] {
        const auto newest = history_.newest(1);
        if (newest.empty()) return std::string();
        const UpdateRecord& record = newest.front();
        std::string text = ", last update ";
        if (record.outcome == Outcome::kCompleted && record.blackout_us)
            text += human_duration(std::chrono::microseconds(*record.blackout_us)) + " downtime";
        else
            text += to_string(record.outcome);
        return text + ", " + ago(record.started_unix_ms);
    }();
    switch (state_) {
    case State::kUpdating:
        return "updating: " + update_phase_ + " (" + update_id_ + ")";
    case State::kLost:
        return "lost: " + lost_why_;
    case State::kRunning:
        return "running " + running_.version + " in VMM " + std::to_string(running_pid_) + last;
    default:
        return std::string(word(state_));
    }
}

void VmSupervisor::tell_status() {
    service_.status(status_line());
    auto timer = loop_.add_timer(kStatusEvery, [this] { tell_status(); });
    if (timer) status_timer_ = std::move(timer).value();
}

// One line closes each update.
void VmSupervisor::log_end(const UpdateRecord& record) const {
    const std::string text =
        std::string(to_string(record.kind)) + " " + record.id + " " + std::string(to_string(record.outcome)) +
        (record.blackout_us ? ": blackout " + std::to_string(*record.blackout_us) + " us" : ": no blackout") +
        (record.reason.empty() ? "" : "; " + record.reason);
    const auto kind = [&]() -> std::optional<EventKind> {
        switch (record.outcome) {
        case Outcome::kCompleted:
            return EventKind::kCommitted;
        case Outcome::kRefused:
            return EventKind::kRefused;
        case Outcome::kAbandoned:
        case Outcome::kRolledBack:
            return EventKind::kRolledBack;
        case Outcome::kFailed:
            return EventKind::kFailed;
        default:
            return std::nullopt; // guest_gone() tells of a lost one
        }
    }();
    if (!kind) return spdlog::info("{}: {}", config_.name, text);
    const bool moved = record.outcome == Outcome::kCompleted || record.outcome == Outcome::kFailed;
    log_event({*kind, config_.name, record.id, record.phases.empty() ? "" : record.phases.back().phase,
        moved ? "destination" : "source", text});
}

// {"command": "reexec"}: this process becomes the supervisor that is on disk, which then adopts the VMM.
void VmSupervisor::begin_reexec(const std::shared_ptr<ControlReply>& reply) {
    if (state_ != State::kRunning)
        return reply->fail({ErrorCode::kBusy, config_.name + " is " + std::string(word(state_)) +
                                                  "; its supervisor is changed when that is over"});
    const auto own = inspect_process(::getpid());
    if (!own) return reply->fail(own.error());
    const auto disk = inspect_binary(own->path);
    if (!disk) return reply->fail(Error(disk.error()).context("the supervisor on disk"));
    if (disk->build_id == own->build_id)
        return reply->finish({{"reexec", false}, {"version", kVersion}, {"build_id", own->build_id}});
    if (auto tried = try_out(disk->path); !tried) return reply->fail(tried.error());
    reply->finish({{"reexec", true}, {"build_id", disk->build_id}});
    // Behind the answer in the loop's queue, so that the client has it.
    loop_.post([this, program = disk->path] { become(program); });
}

void VmSupervisor::become(const std::string& program) {
    if (state_ != State::kRunning) return;
    if (update_thread_.joinable()) update_thread_.join();
    spdlog::info("{}: the supervisor becomes the one on disk, {}", config_.name, program);
    std::vector<systemd::PassedFd> passed;
    for (const auto& file : keepsakes())
        passed.push_back({file.name, file.fd});
    const Error error = systemd::exec_with_fds({program, "--config", config_.path}, passed);
    spdlog::error("{}: {}", config_.name, error.message);
}

} // namespace liveupdate::supervisor
