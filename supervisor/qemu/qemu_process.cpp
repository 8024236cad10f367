#include "supervisor/qemu/qemu_process.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "handoff/base/fd.hpp"
#include "handoff/base/listening.hpp"
#include "supervisor/qemu/descriptors.hpp"
#include "supervisor/qemu/own_monitor.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

constexpr auto kLook = std::chrono::milliseconds(1);
constexpr auto kQuitTime = std::chrono::seconds(2);
constexpr auto kCloseTime = std::chrono::seconds(1);

Result<pid_t> peer_of(int socket) {
    ucred peer{};
    socklen_t size = sizeof(peer);
    if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
        return Error::from_errno("ask who listens at QEMU's monitor");
    return peer.pid;
}

Result<UniqueFd> take_fd_of(int pidfd, pid_t pid, int number) {
    return fd::pidfd_getfd(pidfd, number)
        .context("take descriptor " + std::to_string(number) + " from the QEMU with pid " +
                 std::to_string(pid) + " (needs its user, or CAP_SYS_PTRACE)");
}

// Whether each message comes with the process that has sent it.
Result<void> tell_senders(int socket, bool on) {
    const int value = on ? 1 : 0;
    if (::setsockopt(socket, SOL_SOCKET, SO_PASSCRED, &value, sizeof(value)) < 0)
        return Error::from_errno("QEMU's monitor");
    return {};
}

// A program that leaves the guest to a child of its own would be stopped and killed in place of that.
Result<void> check_greeter(int socket, pid_t started) {
    char byte = 0;
    iovec data{&byte, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(ucred))];
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t n = ::recvmsg(socket, &message, MSG_PEEK | MSG_DONTWAIT);
    if (n < 0) return Error::from_errno("QEMU's monitor");
    if (n == 0) return Error(ErrorCode::kPeerGone, "it has closed its monitor");
    const cmsghdr* header = CMSG_FIRSTHDR(&message);
    ucred sender{};
    if (header != nullptr && header->cmsg_type == SCM_CREDENTIALS)
        std::memcpy(&sender, CMSG_DATA(header), sizeof(sender));
    if (sender.pid == started) return tell_senders(socket, false);
    const std::string_view end = R"({"execute": "qmp_capabilities"}{"execute": "quit"})";
    static_cast<void>(::send(socket, end.data(), end.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
    return Error(ErrorCode::kRefused, "it is no QEMU, but a program that starts one (process " +
                                          std::to_string(sender.pid) + "); name QEMU itself as the binary");
}

// A process closes its sockets a moment before it ends.
bool ended(int pidfd) {
    pollfd polled{pidfd, POLLIN, 0};
    ::poll(&polled, 1, static_cast<int>(std::chrono::milliseconds(kCloseTime).count()));
    return fd::process_gone(pidfd);
}

} // namespace

Result<QemuProcess> QemuProcess::spawn(const OpenBinary& binary,
    const std::vector<std::string>& guest_arguments, Role role, handoff::Participant participant,
    const QemuFolder& folder, const std::vector<ChildFd>& guest_fds, Deadline deadline, int cancel_fd) {
    QemuProcess qemu;
    qemu.binary_.info = binary.info;
    TRY_ASSIGN(qemu.binary_.file, fd::dup(binary.file.get()));
    qemu.participant_ = participant;
    TRY_ASSIGN(auto ends, fd::socketpair(SOCK_STREAM));
    qemu.monitor_end_ = std::move(ends.first);
    TRY(tell_senders(qemu.monitor_end_.get(), true));
    std::vector<std::string> arguments = guest_arguments;
    const auto monitor = monitor_arguments(participant);
    arguments.insert(arguments.end(), monitor.begin(), monitor.end());
    arguments.push_back("-S");
    if (role == Role::kIncoming) arguments.insert(arguments.end(), {"-incoming", "defer"});
    if (role == Role::kCpr) {
        for (const nlohmann::json& channel : folder.migration_channels())
            arguments.insert(arguments.end(), {"-incoming", channel.dump()});
        for (const std::string& path : {folder.cpr_socket(), folder.migration_socket()})
            if (::unlink(path.c_str()) < 0 && errno != ENOENT) return Error::from_errno("remove " + path);
    }
    TRY_ASSIGN(const UniqueFd life, folder.life());
    std::vector<ChildFd> fds = guest_fds;
    fds.push_back({life.get(), kLifeFd});
    fds.push_back({ends.second.get(), kMonitorFd});
    fds.push_back({qemu.monitor_end_.get(), kMonitorKeptFd});
    TRY_ASSIGN(qemu.process_, ChildProcess::spawn(binary, arguments, fds));
    ends.second.reset(); // its end closes with it
    if (role == Role::kCpr)
        TRY(qemu.await_cpr(folder, deadline, cancel_fd));
    else
        TRY(qemu.greet(deadline, cancel_fd));
    return qemu;
}

Result<void> QemuProcess::greet(Deadline deadline, int cancel_fd) {
    const auto greeted = [&]() -> Result<void> {
        TRY(await_greeting(deadline, cancel_fd));
        TRY(check_greeter(monitor_end_.get(), pid()));
        TRY_ASSIGN(monitor_, QmpChannel::open(std::move(monitor_end_), deadline, cancel_fd));
        return {};
    }();
    if (greeted) return {};
    Error error = greeted.error();
    if (error.code == ErrorCode::kPeerGone) error = gone(error);
    if (error.code == ErrorCode::kTimeout)
        error.message = "it did not answer as a QEMU within the time limit";
    return std::move(error).context(binary_.info.path);
}

// Its first word or its end: a program that is no QEMU may leave the socket to a child of its own.
Result<void> QemuProcess::await_greeting(Deadline deadline, int cancel_fd) {
    pollfd polled[] = {
        {monitor_end_.get(), POLLIN, 0}, {process_.pidfd(), POLLIN, 0}, {cancel_fd, POLLIN, 0}};
    while (polled[0].revents == 0) {
        if (::poll(polled, 3, deadline.poll_ms()) < 0 && errno != EINTR)
            return Error::from_errno("wait for QEMU");
        if (polled[2].revents != 0) return Error(ErrorCode::kAborted, "somebody asked for it to stop");
        if (polled[0].revents == 0 && polled[1].revents != 0)
            return Error(ErrorCode::kPeerGone, "it has ended");
        if (polled[0].revents == 0 && deadline.passed())
            return Error(ErrorCode::kTimeout, "it does not speak");
    }
    return {};
}

// A socket's file is there before anybody listens at it, and who connects to look would be taken for the
// source.
Result<void> QemuProcess::await_cpr(const QemuFolder& folder, Deadline deadline, int cancel_fd) {
    while (!is_listening(folder.cpr_socket())) {
        auto looked = look_again(deadline, cancel_fd);
        if (looked) continue;
        Error error = std::move(looked).error();
        if (error.code == ErrorCode::kPeerGone) error = gone(error);
        return std::move(error).context(binary_.info.path);
    }
    return {};
}

Result<void> QemuProcess::look_again(Deadline deadline, int cancel_fd) {
    if (!alive()) return Error(ErrorCode::kPeerGone, "it has ended");
    if (deadline.passed()) return Error(ErrorCode::kTimeout, "it does not listen");
    pollfd polled[] = {{process_.pidfd(), POLLIN, 0}, {cancel_fd, POLLIN, 0}};
    ::poll(polled, 2, static_cast<int>(kLook.count()));
    if (polled[1].revents != 0) return Error(ErrorCode::kAborted, "somebody asked for it to stop");
    return {};
}

Result<QemuProcess> QemuProcess::find(LivingQemu living, Deadline deadline) {
    auto found = [&]() -> Result<QemuProcess> {
        QemuProcess qemu;
        TRY_ASSIGN(UniqueFd pidfd, fd::dup(living.pidfd.get()));
        qemu.participant_ = living.participant;
        if (!living.monitor) {
            TRY_ASSIGN(living.monitor, take_fd_of(living.pidfd.get(), living.pid, kMonitorKeptFd));
        }
        TRY_ASSIGN(qemu.monitor_, QmpChannel::resume(std::move(living.monitor), deadline));
        TRY(qemu.take_process(living.pid, std::move(pidfd)));
        return qemu;
    }();
    if (!found && ended(living.pidfd.get())) return Error(ErrorCode::kNotFound, "it has ended");
    return found;
}

// After its monitor has answered, which proves that the pidfd is of no other process.
Result<void> QemuProcess::take_process(pid_t pid, UniqueFd pidfd) {
    TRY_ASSIGN(binary_, OpenBinary::of_process(pid));
    process_ = ChildProcess::find(pid, std::move(pidfd));
    return {};
}

Result<QemuProcess> QemuProcess::find(
    const AdoptedQemu& adopted, const QemuFolder& folder, Deadline deadline) {
    const std::string link = adopted_monitor(folder.path());
    TRY_ASSIGN(QemuProcess qemu, attach(link, deadline, &adopted));
    qemu.adopted_monitor_ = link;
    qemu.adopted_arguments_ = adopted.arguments;
    return qemu;
}

Result<QemuProcess> QemuProcess::attach(
    const std::string& socket_path, Deadline deadline, const AdoptedQemu* expected) {
    QemuProcess qemu;
    qemu.participant_ = kAdoptedParticipant;
    auto socket = fd::unix_connect(socket_path, SOCK_STREAM, deadline);
    if (!socket && (socket.error().system_errno == ENOENT || socket.error().system_errno == ECONNREFUSED))
        return Error(ErrorCode::kNotFound, socket.error().message);
    if (!socket) return std::move(socket).error();
    TRY_ASSIGN(const pid_t peer, peer_of(socket->get()));
    auto pidfd = fd::pidfd_open(peer);
    if (!pidfd) return Error(ErrorCode::kNotFound, "whoever listened at " + socket_path + " has ended");
    if (expected != nullptr) {
        const auto ticks = start_ticks_of(peer);
        if (peer != expected->pid || !ticks || *ticks != expected->start_ticks)
            return Error(ErrorCode::kNotFound,
                "another process, " + std::to_string(peer) + ", listens at " + socket_path + " by now");
    }
    auto monitor = QmpChannel::open(std::move(*socket), deadline);
    if (!monitor && monitor.error().code == ErrorCode::kPeerGone && ended(pidfd->get()))
        return Error(ErrorCode::kNotFound, monitor.error().message);
    if (!monitor) return std::move(monitor).error();
    qemu.monitor_ = std::move(*monitor);
    TRY(qemu.take_process(peer, std::move(*pidfd)));
    return qemu;
}

Result<nlohmann::json> QemuProcess::execute(
    const std::string& command, nlohmann::json arguments, Deadline deadline, int cancel_fd) {
    auto done = monitor_.execute(command, std::move(arguments), deadline, cancel_fd);
    if (!done && done.error().code == ErrorCode::kPeerGone) return gone(done.error());
    return done;
}

Error QemuProcess::gone(const Error& error) {
    // The monitor ends a moment before the process does.
    if (!process_.await_end(Deadline::after(std::chrono::seconds(1)))) return error;
    const std::string& ended = how_it_ended();
    std::string text = ended.empty() ? "QEMU is gone" : "QEMU " + ended;
    if (const std::string words = process_.last_words(); !words.empty()) text += "; its last words: " + words;
    return {ErrorCode::kPeerGone, text};
}

void QemuProcess::end(Deadline deadline) {
    if (!process_) return;
    if (alive())
        static_cast<void>(monitor_.send("quit", nullptr, deadline.earlier(Deadline::after(kQuitTime))));
    process_.await_end(deadline);
    kill();
}

void QemuProcess::kill() {
    if (!process_) return;
    process_.kill();
    if (is_adopted()) ::unlink(adopted_monitor_.c_str());
    static_cast<void>(monitor_.take_arrived()); // its last events stay
    monitor_.close();
    monitor_end_.reset();
}

void QemuProcess::forget() {
    process_.forget();
    monitor_.close();
    monitor_end_.reset();
}

RecordedBinary QemuProcess::recorded() const {
    return {binary_.info.path, monitor_.version(), binary_.info.build_id};
}

uint64_t QemuProcess::started_unix() const {
    struct stat status {};
    const std::string path = "/proc/" + std::to_string(pid());
    return ::stat(path.c_str(), &status) < 0 ? 0 : static_cast<uint64_t>(status.st_ctim.tv_sec);
}

Result<std::vector<std::string>> QemuProcess::guest_arguments() const {
    if (adopted_arguments_) return *adopted_arguments_;
    TRY_ASSIGN(const auto all, arguments_of(pid()));
    const auto own = own_monitor(all);
    if (!own)
        return Error(ErrorCode::kRefused,
            "process " + std::to_string(pid()) + " was not started by liveupdate: it has no monitor of ours");
    return std::vector<std::string>(all.begin(), all.begin() + static_cast<ptrdiff_t>(own->at));
}

int QemuProcess::session_file() const {
    if (is_adopted()) return -1;
    return monitor_ ? monitor_.fd() : monitor_end_.get();
}

Result<UniqueFd> QemuProcess::take_fd(int number) const {
    return take_fd_of(pidfd(), pid(), number);
}

} // namespace liveupdate::supervisor::qemu
