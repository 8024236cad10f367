// What VmSupervisor shares with its service manager: what is kept for a successor, how a successor uses it,
// the status line, and the change to a newer supervisor.
#include <fcntl.h>
#include <spawn.h>
#include <spdlog/spdlog.h>
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
    const auto of_guest = driver_->keepsakes();
    if (of_guest.empty()) return all;
    all.insert(all.end(), of_guest.begin(), of_guest.end());
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
        return "running " + running_.binary.version + " in VMM " + std::to_string(running_.pid) + last;
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
