#include "supervisor/cli/supervisor_process.hpp"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "handoff/base/fd.hpp"

namespace liveupdate::supervisor::cli {
namespace {

constexpr const char* kInstalled = "/usr/libexec/liveupdate/liveupdated";

Error missing(const std::string& program, int problem) {
    return {ErrorCode::kNotFound,
        "start " + program + ": " + std::strerror(problem) +
            "; install liveupdate, or set $LIVEUPDATED to the supervisor",
        problem};
}

// What posix_spawn() is told; freed with it.
struct SpawnPlan {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;

    explicit SpawnPlan(int log) {
        ::posix_spawn_file_actions_init(&actions);
        ::posix_spawnattr_init(&attributes);
        ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
        ::posix_spawn_file_actions_adddup2(&actions, log, STDOUT_FILENO);
        ::posix_spawn_file_actions_adddup2(&actions, log, STDERR_FILENO);
        ::posix_spawn_file_actions_addchdir_np(&actions, "/");
        sigset_t none;
        sigemptyset(&none);
        sigset_t all;
        sigfillset(&all);
        ::posix_spawnattr_setsigmask(&attributes, &none);
        ::posix_spawnattr_setsigdefault(&attributes, &all);
        ::posix_spawnattr_setflags(
            &attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    }
    SpawnPlan(const SpawnPlan&) = delete;
    SpawnPlan& operator=(const SpawnPlan&) = delete;
    ~SpawnPlan() {
        ::posix_spawn_file_actions_destroy(&actions);
        ::posix_spawnattr_destroy(&attributes);
    }
};

} // namespace

std::string find_supervisor_program() {
    if (const char* const chosen = std::getenv("LIVEUPDATED"); chosen && *chosen) return chosen;
    std::error_code problem;
    const auto own = std::filesystem::read_symlink("/proc/self/exe", problem);
    const std::string beside = problem ? "" : (own.parent_path() / "liveupdated").string();
    return !beside.empty() && ::access(beside.c_str(), X_OK) == 0 ? beside : kInstalled;
}

Result<SupervisorProcess> SupervisorProcess::spawn(const std::string& program, const std::string& config_path,
    const std::string& log_path, const std::vector<std::string>& more) {
    TRY_ASSIGN(const UniqueFd log, fd::open(log_path, O_WRONLY | O_CREAT | O_APPEND, 0640));
    struct stat status {};
    if (::fstat(log.get(), &status) < 0) return Error::from_errno("stat " + log_path);

    const SpawnPlan plan(log.get());
    std::vector<const char*> arguments = {program.c_str(), "--config", config_path.c_str()};
    for (const std::string& argument : more)
        arguments.push_back(argument.c_str());
    arguments.push_back(nullptr);
    SupervisorProcess process;
    const int problem = ::posix_spawn(&process.pid_, program.c_str(), &plan.actions, &plan.attributes,
        const_cast<char* const*>(arguments.data()), environ);
    if (problem != 0) return missing(program, problem);
    process.log_path_ = log_path;
    process.log_start_ = static_cast<size_t>(status.st_size);
    return process;
}

std::optional<int> SupervisorProcess::ended() {
    int status = 0;
    if (!status_ && ::waitpid(pid_, &status, WNOHANG) == pid_)
        status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return status_;
}

std::string SupervisorProcess::log_tail(size_t lines) const {
    const auto log = fd::read_file(log_path_);
    if (!log || log->size() <= log_start_) return "";
    std::string text = log->substr(log_start_);
    if (text.back() != '\n') text += '\n';
    size_t at = text.size() - 1;
    while (lines > 0 && at != std::string::npos && at > 0) {
        at = text.rfind('\n', at - 1);
        --lines;
    }
    return lines > 0 || at == std::string::npos || at == 0 ? text : text.substr(at + 1);
}

Error exec_supervisor(const std::string& program, const std::string& config_path) {
    ::signal(SIGPIPE, SIG_DFL); // ignored signals stay so across exec
    ::execl(program.c_str(), program.c_str(), "--config", config_path.c_str(), "--foreground", nullptr);
    return missing(program, errno);
}

} // namespace liveupdate::supervisor::cli
