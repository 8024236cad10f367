#include "supervisor/child_process.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "handoff/base/fd.hpp"

extern char** environ;

namespace liveupdate::supervisor {
namespace {

constexpr size_t kLastWords = 2048;

// What our service manager tells us concerns nobody else.
std::vector<char*> environment_for_child() {
    std::vector<char*> variables;
    for (char** v = environ; *v != nullptr; ++v) {
        const std::string_view text(*v);
        const bool ours = text.starts_with("NOTIFY_SOCKET=") || text.starts_with("LISTEN_") ||
                          text.starts_with("WATCHDOG_") || text.starts_with("FDSTORE=");
        if (!ours) variables.push_back(*v);
    }
    variables.push_back(nullptr);
    return variables;
}

class FileActions {
public:
    FileActions() { ::posix_spawn_file_actions_init(&actions_); }
    FileActions(const FileActions&) = delete;
    FileActions& operator=(const FileActions&) = delete;
    ~FileActions() { ::posix_spawn_file_actions_destroy(&actions_); }
    void dup2(int from, int to) { ::posix_spawn_file_actions_adddup2(&actions_, from, to); }
    void open_null(int to) { ::posix_spawn_file_actions_addopen(&actions_, to, "/dev/null", O_RDWR, 0); }
    const posix_spawn_file_actions_t* get() const { return &actions_; }

private:
    posix_spawn_file_actions_t actions_;
};

class SpawnAttributes {
public:
    // The child must not take part in our terminal's signals, nor inherit our blocked ones.
    SpawnAttributes() {
        sigset_t none;
        ::sigemptyset(&none);
        ::posix_spawnattr_init(&attributes_);
        ::posix_spawnattr_setsigmask(&attributes_, &none);
        ::posix_spawnattr_setpgroup(&attributes_, 0);
        ::posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
    }
    SpawnAttributes(const SpawnAttributes&) = delete;
    SpawnAttributes& operator=(const SpawnAttributes&) = delete;
    ~SpawnAttributes() { ::posix_spawnattr_destroy(&attributes_); }
    const posix_spawnattr_t* get() const { return &attributes_; }

private:
    posix_spawnattr_t attributes_;
};

// A duplicate above all numbers that the child gives them, so that no dup2 overwrites a source.
Result<UniqueFd> lift(int fd, int above) {
    UniqueFd lifted(::fcntl(fd, F_DUPFD_CLOEXEC, above));
    if (!lifted) return Error::from_errno("pass a file descriptor");
    return lifted;
}

} // namespace

std::string printable_end(std::string text, size_t limit) {
    if (text.size() > limit) text.erase(0, text.size() - limit);
    std::replace_if(
        text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, ' ');
    while (!text.empty() && text.back() == ' ')
        text.pop_back();
    return text;
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(other.pid_), pidfd_(std::move(other.pidfd_)), words_(std::move(other.words_)),
      ended_(std::move(other.ended_)), is_child_(std::exchange(other.is_child_, false)) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
    if (this == &other) return *this;
    kill();
    pid_ = other.pid_;
    pidfd_ = std::move(other.pidfd_);
    words_ = std::move(other.words_);
    ended_ = std::move(other.ended_);
    is_child_ = std::exchange(other.is_child_, false);
    return *this;
}

ChildProcess::~ChildProcess() {
    kill();
}

Result<ChildProcess> ChildProcess::spawn(
    const OpenBinary& binary, const std::vector<std::string>& arguments, const std::vector<ChildFd>& fds) {
    ChildProcess process;
    int pipe[2];
    if (::pipe2(pipe, O_CLOEXEC | O_NONBLOCK) < 0) return Error::from_errno("pipe");
    process.words_ = UniqueFd(pipe[0]);
    const UniqueFd theirs(pipe[1]);
    int above = STDERR_FILENO;
    for (const ChildFd& each : fds)
        above = std::max(above, each.number);
    std::vector<UniqueFd> lifted;
    FileActions actions;
    actions.open_null(STDIN_FILENO);
    TRY_ASSIGN(const UniqueFd words, lift(theirs.get(), above + 1));
    actions.dup2(words.get(), STDOUT_FILENO);
    actions.dup2(words.get(), STDERR_FILENO);
    for (const ChildFd& each : fds) {
        TRY_ASSIGN(UniqueFd source, lift(each.fd, above + 1));
        actions.dup2(source.get(), each.number);
        lifted.push_back(std::move(source));
    }
    const SpawnAttributes attributes;
    std::vector<std::string> all{binary.exec_path()};
    all.insert(all.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& argument : all)
        argv.push_back(argument.data());
    argv.push_back(nullptr);
    const int failed = ::posix_spawn(
        &process.pid_, argv[0], actions.get(), attributes.get(), argv.data(), environment_for_child().data());
    if (failed != 0) {
        errno = failed;
        return Error::from_errno("start " + binary.info.path);
    }
    process.is_child_ = true;
    TRY_ASSIGN(process.pidfd_, fd::pidfd_open(process.pid_));
    return process;
}

Result<ChildProcess> ChildProcess::find(pid_t pid) {
    TRY_ASSIGN(UniqueFd pidfd, fd::pidfd_open(pid));
    return find(pid, std::move(pidfd));
}

ChildProcess ChildProcess::find(pid_t pid, UniqueFd pidfd) {
    ChildProcess process;
    process.pidfd_ = std::move(pidfd);
    process.pid_ = pid;
    // A supervisor that was replaced by exec is still its parent.
    siginfo_t info{};
    process.is_child_ = ::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT) == 0;
    return process;
}

bool ChildProcess::alive() const {
    return pidfd_ && !fd::process_gone(pidfd_.get());
}

bool ChildProcess::await_end(Deadline deadline) {
    if (!pidfd_) return true;
    pollfd polled{pidfd_.get(), POLLIN, 0};
    while (::poll(&polled, 1, deadline.poll_ms()) < 0 && errno == EINTR) {
    }
    if (alive()) return false;
    reap();
    return true;
}

void ChildProcess::reap() {
    siginfo_t info{};
    if (!is_child_ || ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED) < 0) return;
    is_child_ = false;
    ended_ = info.si_code == CLD_EXITED ? "exited with status " + std::to_string(info.si_status)
                                        : "was killed by signal " + std::to_string(info.si_status);
}

void ChildProcess::kill() {
    if (!pidfd_) return;
    static_cast<void>(fd::pidfd_send_signal(pidfd_.get(), SIGKILL));
    await_end(Deadline::never());
    pidfd_.reset();
}

void ChildProcess::wait_or_kill(Deadline deadline) {
    await_end(deadline);
    kill();
}

void ChildProcess::forget() {
    pidfd_.reset();
}

std::string ChildProcess::last_words() const {
    std::string text;
    char buffer[4096];
    while (words_) {
        const ssize_t n = ::read(words_.get(), buffer, sizeof(buffer));
        if (n <= 0) break;
        text.append(buffer, static_cast<size_t>(n));
        if (text.size() > 2 * kLastWords) text.erase(0, text.size() - kLastWords);
    }
    return printable_end(std::move(text), kLastWords);
}

} // namespace liveupdate::supervisor
