#include "supervisor/vmm_process.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "handoff/base/fd.hpp"
#include "handoff/negotiation.hpp"
#include "liveupdate_version.hpp"

extern char** environ;

namespace liveupdate::supervisor {
namespace {

constexpr int kChildSessionFd = 3;
constexpr size_t kLastWords = 2048;
constexpr size_t kMostEvents = 64; // that wait to be served
constexpr auto kSendTime = std::chrono::seconds(5);

ErrorCode code_from(const std::string& word) {
    for (const ErrorCode code : {ErrorCode::kInternal, ErrorCode::kSystem, ErrorCode::kTimeout,
             ErrorCode::kPeerGone, ErrorCode::kProtocol, ErrorCode::kRefused, ErrorCode::kInvalid,
             ErrorCode::kUnsupported, ErrorCode::kAborted, ErrorCode::kNotFound, ErrorCode::kBusy})
        if (to_string(code) == word) return code;
    return ErrorCode::kProtocol;
}

// A peer's text, for our own sentences: bounded, one line, printable.
std::string printable(std::string text, size_t limit) {
    if (text.size() > limit) text.erase(0, text.size() - limit);
    std::replace_if(
        text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, ' ');
    while (!text.empty() && text.back() == ' ')
        text.pop_back();
    return text;
}

// What our service manager tells us concerns nobody else.
std::vector<char*> environment_for_vmm() {
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
    // The VMM must not take part in our terminal's signals, nor inherit our blocked ones.
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

} // namespace

VmmProcess& VmmProcess::operator=(VmmProcess&& other) noexcept {
    if (this == &other) return *this;
    this->~VmmProcess();
    return *new (this) VmmProcess(std::move(other));
}

VmmProcess::~VmmProcess() {
    if (pidfd_) kill();
}

Result<void> VmmProcess::start(const std::string& socket_path) {
    TRY_ASSIGN(const UniqueFd listening, fd::unix_listen(socket_path, SOCK_SEQPACKET, 4));
    socket_path_ = socket_path;
    TRY_ASSIGN(session_file_, fd::open(socket_path, O_PATH));
    int pipe[2];
    if (::pipe2(pipe, O_CLOEXEC | O_NONBLOCK) < 0) return Error::from_errno("pipe");
    stderr_ = UniqueFd(pipe[0]);
    const UniqueFd theirs(pipe[1]);
    // Above the numbers that the child gives them, so that no dup2 overwrites a source.
    const UniqueFd session(::fcntl(listening.get(), F_DUPFD_CLOEXEC, 10));
    const UniqueFd words(::fcntl(theirs.get(), F_DUPFD_CLOEXEC, 10));
    FileActions actions;
    actions.open_null(STDIN_FILENO);
    actions.dup2(words.get(), STDOUT_FILENO);
    actions.dup2(words.get(), STDERR_FILENO);
    actions.dup2(session.get(), kChildSessionFd);
    const SpawnAttributes attributes;
    std::string path = binary_.exec_path(), option = "--session-fd", number = std::to_string(kChildSessionFd);
    char* argv[] = {path.data(), option.data(), number.data(), nullptr};
    const int failed = ::posix_spawn(
        &pid_, path.c_str(), actions.get(), attributes.get(), argv, environment_for_vmm().data());
    if (failed != 0) {
        errno = failed;
        return Error::from_errno("start " + binary_.info.path);
    }
    is_child_ = true;
    TRY_ASSIGN(pidfd_, fd::pidfd_open(pid_));
    return {};
}

Result<VmmProcess> VmmProcess::spawn(const OpenBinary& binary, handoff::Participant participant,
    const std::string& socket_path, Deadline deadline, int cancel_fd) {
    VmmProcess process;
    process.binary_.info = binary.info;
    TRY_ASSIGN(process.binary_.file, fd::dup(binary.file.get()));
    process.participant_ = participant;
    TRY(process.start(socket_path));
    auto socket = fd::unix_connect(socket_path, SOCK_SEQPACKET);
    if (!socket) return process.gone().context(binary.info.path); // nobody but the process could listen there
    process.channel_ = handoff::Channel(std::move(socket).value());
    auto greeted = process.greet(deadline, cancel_fd);
    if (!greeted) {
        Error error = std::move(greeted).error();
        if (error.code == ErrorCode::kTimeout)
            error.message = "it did not answer as a VMM within the time limit";
        return std::move(error).context(binary.info.path);
    }
    return process;
}

Result<VmmProcess> VmmProcess::connect(const std::string& socket_path, Deadline deadline) {
    VmmProcess process;
    process.socket_path_ = socket_path;
    auto socket = fd::unix_connect(socket_path, SOCK_SEQPACKET);
    if (!socket) return Error(ErrorCode::kNotFound, socket.error().message);
    TRY_ASSIGN(process.session_file_, fd::open(socket_path, O_PATH));
    process.channel_ = handoff::Channel(std::move(socket).value());
    handoff::proto::Message hello;
    hello.mutable_hello()->set_oldest_protocol(handoff::kOldestProtocol);
    hello.mutable_hello()->set_newest_protocol(handoff::kNewestProtocol);
    hello.mutable_hello()->set_supervisor_version(std::string(kVersion));
    TRY(process.channel_.send(std::move(hello), deadline));
    TRY_ASSIGN(const handoff::Received answer, process.channel_.receive(deadline));
    if (!answer.message.has_offer())
        return Error(ErrorCode::kProtocol,
            socket_path + ": the answer to Hello is " + handoff::kind_of(answer.message));
    // The kernel names the sender; the session that is still open proves that the pid has not been reused.
    TRY_ASSIGN(process.pidfd_, fd::pidfd_open(answer.sender.pid));
    process.pid_ = answer.sender.pid;
    process.offer_ = answer.message.offer();
    process.participant_ = static_cast<handoff::Participant>(process.offer_.participant());
    auto binary = OpenBinary::of_process(process.pid_);
    if (!binary) {
        process.forget(); // it may run the guest
        return std::move(binary).error();
    }
    process.binary_ = std::move(binary).value();
    // A supervisor that was replaced by exec is still its parent.
    siginfo_t info{};
    process.is_child_ =
        ::waitid(P_PID, static_cast<id_t>(process.pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0;
    return process;
}

Result<void> VmmProcess::greet(Deadline deadline, int cancel_fd) {
    handoff::proto::Message hello;
    hello.mutable_hello()->set_oldest_protocol(handoff::kOldestProtocol);
    hello.mutable_hello()->set_newest_protocol(handoff::kNewestProtocol);
    hello.mutable_hello()->set_supervisor_version(std::string(kVersion));
    TRY_ASSIGN(const handoff::Received answer,
        request(std::move(hello), {}, handoff::proto::Message::kOffer, deadline, cancel_fd));
    if (answer.sender.pid != pid_)
        return Error(ErrorCode::kProtocol, "somebody else than the started process answers");
    offer_ = answer.message.offer();
    TRY(handoff::agree_on_protocol(handoff::kOldestProtocol, handoff::kNewestProtocol,
        offer_.oldest_protocol(), offer_.newest_protocol()));
    return {};
}

Error VmmProcess::gone() {
    if (pidfd_) {
        // The session ends a moment before the process does.
        pollfd polled{pidfd_.get(), POLLIN, 0};
        if (::poll(&polled, 1, 1000) == 1) reap();
    }
    std::string text = ended_.empty() ? "the VMM has closed its session" : "the VMM " + ended_;
    if (const std::string words = last_words(); !words.empty()) text += "; its last words: " + words;
    return {ErrorCode::kPeerGone, text};
}

// A guest has few events, so many are a VMM that wants to fill our memory.
Result<void> VmmProcess::keep(const handoff::proto::GuestEvent& event) {
    if (events_.size() >= kMostEvents)
        return Error(ErrorCode::kProtocol, "the VMM floods its supervisor with guest events");
    events_.push_back(event);
    return {};
}

Result<handoff::Received> VmmProcess::await(
    handoff::proto::Message::BodyCase wanted, Deadline deadline, int cancel_fd) {
    for (;;) {
        auto received = channel_.receive(deadline, cancel_fd);
        if (!received && received.error().code == ErrorCode::kPeerGone) return gone();
        if (!received) return received;
        const auto& message = received->message;
        if (message.has_guest_event()) {
            TRY(keep(message.guest_event()));
            continue;
        }
        if (message.has_failure())
            return Error(
                code_from(message.failure().code()), printable(message.failure().message(), kLastWords));
        if (message.body_case() != wanted)
            return Error(ErrorCode::kProtocol, "the VMM answered with " + handoff::kind_of(message));
        return received;
    }
}

Result<handoff::Received> VmmProcess::request(handoff::proto::Message message,
    const std::vector<handoff::FdToSend>& fds, handoff::proto::Message::BodyCase wanted, Deadline deadline,
    int cancel_fd) {
    auto sent = channel_.send(std::move(message), fds, deadline);
    if (!sent && sent.error().code == ErrorCode::kPeerGone) return gone();
    TRY(sent);
    return await(wanted, deadline, cancel_fd);
}

Result<void> VmmProcess::tell(handoff::proto::Message message) {
    return channel_.send(std::move(message), Deadline::after(kSendTime));
}

bool VmmProcess::drain_events() {
    for (;;) {
        if (events_.size() >= kMostEvents) return alive(); // the rest when these have been served
        pollfd polled{channel_.fd(), POLLIN, 0};
        if (!channel_ || ::poll(&polled, 1, 0) != 1) return alive();
        auto received = channel_.receive(Deadline::after(std::chrono::milliseconds(100)));
        if (!received) {
            channel_.close();
            return false;
        }
        if (received->message.has_guest_event()) events_.push_back(received->message.guest_event());
    }
}

bool VmmProcess::alive() const {
    return pidfd_ && !fd::process_gone(pidfd_.get());
}

void VmmProcess::reap() {
    siginfo_t info{};
    if (!is_child_ || ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED) < 0) return;
    is_child_ = false;
    ended_ = info.si_code == CLD_EXITED ? "exited with status " + std::to_string(info.si_status)
                                        : "was killed by signal " + std::to_string(info.si_status);
}

void VmmProcess::kill() {
    if (!pidfd_) return;
    static_cast<void>(fd::pidfd_send_signal(pidfd_.get(), SIGKILL));
    pollfd polled{pidfd_.get(), POLLIN, 0};
    while (::poll(&polled, 1, -1) < 0 && errno == EINTR) {
    }
    reap();
    ::unlink(socket_path_.c_str());
    channel_.close();
    session_file_.reset();
    pidfd_.reset();
}

void VmmProcess::wait_or_kill(Deadline deadline) {
    if (!pidfd_) return;
    pollfd polled{pidfd_.get(), POLLIN, 0};
    while (::poll(&polled, 1, deadline.poll_ms()) < 0 && errno == EINTR) {
    }
    kill();
}

void VmmProcess::forget() {
    pidfd_.reset();
    session_file_.reset();
    channel_.close();
}

std::string VmmProcess::last_words() const {
    std::string text;
    char buffer[4096];
    while (stderr_) {
        const ssize_t n = ::read(stderr_.get(), buffer, sizeof(buffer));
        if (n <= 0) break;
        text.append(buffer, static_cast<size_t>(n));
        if (text.size() > 2 * kLastWords) text.erase(0, text.size() - kLastWords);
    }
    return printable(std::move(text), kLastWords);
}

} // namespace liveupdate::supervisor
