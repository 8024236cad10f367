#include "supervisor/qemu/qemu_process.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <optional>

#include "handoff/base/fd.hpp"
#include "handoff/base/listening.hpp"
#include "supervisor/kept_vmms.hpp"
#include "supervisor/qemu/adopted.hpp"
#include "supervisor/qemu/options.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

constexpr auto kLook = std::chrono::milliseconds(1);
constexpr auto kQuitTime = std::chrono::seconds(2);
constexpr auto kCloseTime = std::chrono::seconds(1);
constexpr std::string_view kPrefix = "qmp-";
constexpr std::string_view kSuffix = ".sock";
constexpr std::string_view kDeleted = " (deleted)";
constexpr const char* kMonitorOption = "-qmp"; // the first of the arguments that belong to one process
constexpr std::string_view kUnix = "unix:";
constexpr std::string_view kListens = ",server=on,wait=off";

// Of "qmp-N.sock", whatever the kernel says after it of a file that was removed.
std::optional<handoff::Participant> participant_of(std::string_view name) {
    if (name.ends_with(kDeleted)) name.remove_suffix(kDeleted.size());
    if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) return std::nullopt;
    name.remove_prefix(kPrefix.size());
    name.remove_suffix(kSuffix.size());
    handoff::Participant number = 0;
    const auto [end, problem] = std::from_chars(name.data(), name.data() + name.size(), number);
    if (problem != std::errc() || end != name.data() + name.size() || number == 0) return std::nullopt;
    return number;
}

Result<pid_t> peer_of(int socket) {
    ucred peer{};
    socklen_t size = sizeof(peer);
    if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
        return Error::from_errno("ask who listens at QEMU's monitor");
    return peer.pid;
}

// A process closes its sockets a moment before it ends.
bool ended(int pidfd) {
    pollfd polled{pidfd, POLLIN, 0};
    ::poll(&polled, 1, static_cast<int>(std::chrono::milliseconds(kCloseTime).count()));
    return fd::process_gone(pidfd);
}

std::vector<std::string> cpr_channels(const MonitorFolder& folder) {
    std::vector<std::string> channels;
    for (const nlohmann::json& channel : migration_channels(folder))
        channels.push_back(channel.dump());
    return channels;
}

} // namespace

nlohmann::json migration_channels(const MonitorFolder& folder) {
    const auto channel = [](const char* type, const std::string& path) -> nlohmann::json {
        return {
            {"channel-type", type}, {"addr", {{"transport", "socket"}, {"type", "unix"}, {"path", path}}}};
    };
    return nlohmann::json::array(
        {channel("main", folder.migration_socket()), channel("cpr", folder.cpr_socket())});
}

Result<void> MonitorFolder::make() const {
    if (::mkdir(path_.c_str(), 0700) < 0 && errno != EEXIST) return Error::from_errno("make " + path_);
    struct stat status {};
    if (::lstat(path_.c_str(), &status) < 0) return Error::from_errno("stat " + path_);
    if (!S_ISDIR(status.st_mode) || status.st_uid != ::geteuid())
        return Error(ErrorCode::kRefused, path_ + " is not a folder of our own; remove it");
    if (::chmod(path_.c_str(), 0700) < 0) return Error::from_errno("chmod " + path_);
    return {};
}

std::string MonitorFolder::socket(handoff::Participant participant) const {
    return path_ + "/" + std::string(kPrefix) + std::to_string(participant) + std::string(kSuffix);
}

std::vector<MonitorFolder::Monitor> MonitorFolder::monitors(const handoff::NamedFds& kept) const {
    namespace fs = std::filesystem;
    std::vector<std::string> paths;
    std::error_code problem;
    for (const auto& entry : fs::directory_iterator(path_, problem))
        paths.push_back(entry.path());
    std::vector<Monitor> found;
    for (const std::string& path : session_sockets(paths, kept)) {
        const bool here = fs::path(path).parent_path() == path_;
        const fs::path file = here ? fs::path(path) : fs::read_symlink(path, problem);
        if (const auto number = participant_of(file.filename().string())) found.push_back({*number, path});
    }
    return found;
}

std::string MonitorFolder::option(handoff::Participant participant) const {
    return std::string(kUnix) + with_commas_doubled(socket(participant)) + std::string(kListens);
}

std::optional<handoff::Participant> MonitorFolder::whose_option(std::string_view argument) const {
    const std::string folder = std::string(kUnix) + with_commas_doubled(path_) + "/";
    if (!argument.starts_with(folder) || !argument.ends_with(kListens)) return std::nullopt;
    argument.remove_prefix(folder.size());
    argument.remove_suffix(kListens.size());
    return participant_of(argument);
}

Result<UniqueFd> MonitorFolder::life() const {
    TRY_ASSIGN(UniqueFd file, fd::open(life_file(), O_RDWR | O_CREAT, 0600));
    if (::flock(file.get(), LOCK_SH | LOCK_NB) < 0) return Error::from_errno("lock " + life_file());
    return file;
}

Result<bool> MonitorFolder::nobody_lives(Deadline deadline) const {
    TRY_ASSIGN(const UniqueFd file, fd::open(life_file(), O_RDWR | O_CREAT, 0600));
    while (::flock(file.get(), LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK && errno != EINTR) return Error::from_errno("lock " + life_file());
        if (deadline.passed()) return false;
        ::usleep(std::chrono::microseconds(kLook).count());
    }
    return true;
}

Result<QemuProcess> QemuProcess::spawn(const OpenBinary& binary,
    const std::vector<std::string>& guest_arguments, Role role, handoff::Participant participant,
    const MonitorFolder& folder, const std::vector<ChildFd>& guest_fds, Deadline deadline, int cancel_fd) {
    QemuProcess qemu;
    qemu.binary_.info = binary.info;
    TRY_ASSIGN(qemu.binary_.file, fd::dup(binary.file.get()));
    qemu.participant_ = participant;
    qemu.socket_ = folder.socket(participant);
    if (::unlink(qemu.socket_.c_str()) < 0 && errno != ENOENT)
        return Error::from_errno("remove " + qemu.socket_);
    std::vector<std::string> arguments = guest_arguments;
    arguments.insert(arguments.end(), {kMonitorOption, folder.option(participant), "-S"});
    if (role == Role::kIncoming) arguments.insert(arguments.end(), {"-incoming", "defer"});
    if (role == Role::kCpr) {
        for (const std::string& channel : cpr_channels(folder))
            arguments.insert(arguments.end(), {"-incoming", channel});
        for (const std::string& path : {folder.cpr_socket(), folder.migration_socket()})
            if (::unlink(path.c_str()) < 0 && errno != ENOENT) return Error::from_errno("remove " + path);
    }
    TRY_ASSIGN(const UniqueFd life, folder.life());
    std::vector<ChildFd> fds = guest_fds;
    fds.push_back({life.get(), kLifeFd});
    TRY_ASSIGN(qemu.process_, ChildProcess::spawn(binary, arguments, fds));
    if (role == Role::kCpr)
        TRY(qemu.await_cpr(folder, deadline, cancel_fd));
    else
        TRY(qemu.connect(deadline, cancel_fd));
    return qemu;
}

Result<void> QemuProcess::connect(Deadline deadline, int cancel_fd) {
    auto connected = open_monitor(deadline, cancel_fd);
    if (connected) return {};
    Error error = std::move(connected).error();
    if (error.code == ErrorCode::kPeerGone) error = gone(error);
    if (error.code == ErrorCode::kTimeout)
        error.message = "it did not answer as a QEMU within the time limit";
    return std::move(error).context(binary_.info.path);
}

Result<void> QemuProcess::open_monitor(Deadline deadline, int cancel_fd) {
    for (;;) {
        auto socket = fd::unix_connect(socket_, SOCK_STREAM, deadline.earlier(Deadline::after(kLook)));
        if (socket) {
            TRY_ASSIGN(const pid_t peer, peer_of(socket->get()));
            if (peer != pid())
                return Error(
                    ErrorCode::kProtocol, "somebody else than the started process listens at " + socket_);
            TRY_ASSIGN(monitor_, QmpChannel::open(std::move(*socket), deadline, cancel_fd));
            TRY_ASSIGN(monitor_file_, fd::open(socket_, O_PATH));
            return {};
        }
        TRY(look_again(deadline, cancel_fd));
    }
}

// A socket's file is there before anybody listens at it, and who connects to look would be taken for the
// source.
Result<void> QemuProcess::await_cpr(const MonitorFolder& folder, Deadline deadline, int cancel_fd) {
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

// The socket of one that was adopted is a link, to wherever somebody else has put it: another QEMU may listen
// there by now.
Result<QemuProcess> QemuProcess::find(
    const MonitorFolder::Monitor& at, const MonitorFolder& folder, Deadline deadline) {
    std::error_code problem;
    if (!std::filesystem::is_symlink(folder.socket(at.participant), problem)) {
        TRY_ASSIGN(QemuProcess qemu, attach(at.path, at.participant, deadline));
        qemu.socket_ = folder.socket(at.participant);
        return qemu;
    }
    TRY_ASSIGN(auto adopted, find_adopted(folder.path()));
    if (!adopted) return Error(ErrorCode::kNotFound, "the QEMU that was adopted has ended");
    TRY_ASSIGN(QemuProcess qemu, attach(at.path, at.participant, deadline, &*adopted));
    qemu.socket_ = folder.socket(at.participant);
    qemu.adopted_arguments_ = std::move(adopted->arguments);
    return qemu;
}

Result<QemuProcess> QemuProcess::attach(const std::string& socket_path, handoff::Participant participant,
    Deadline deadline, const AdoptedQemu* expected) {
    QemuProcess qemu;
    qemu.participant_ = participant;
    qemu.socket_ = socket_path;
    auto socket = fd::unix_connect(qemu.socket_, SOCK_STREAM, deadline);
    if (!socket && (socket.error().system_errno == ENOENT || socket.error().system_errno == ECONNREFUSED))
        return Error(ErrorCode::kNotFound, socket.error().message);
    if (!socket) return std::move(socket).error();
    TRY_ASSIGN(qemu.monitor_file_, fd::open(socket_path, O_PATH));
    TRY_ASSIGN(const pid_t peer, peer_of(socket->get()));
    const auto pidfd = fd::pidfd_open(peer);
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
    // The monitor that answers proves that the number has not been taken by another process.
    auto binary = OpenBinary::of_process(peer);
    if (!binary) return std::move(binary).error();
    qemu.binary_ = std::move(*binary);
    TRY_ASSIGN(qemu.process_, ChildProcess::find(peer));
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
    ::unlink(socket_.c_str());
    static_cast<void>(monitor_.take_arrived()); // its last events stay
    monitor_.close();
    monitor_file_.reset();
}

void QemuProcess::forget() {
    process_.forget();
    monitor_.close();
    monitor_file_.reset();
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
    const auto own = std::find(all.rbegin(), all.rend(), kMonitorOption);
    if (own == all.rend())
        return Error(ErrorCode::kRefused,
            "process " + std::to_string(pid()) + " was not started by liveupdate: it has no '-qmp'");
    return std::vector<std::string>(all.begin(), own.base() - 1);
}

Result<UniqueFd> QemuProcess::take_fd(int number) const {
    return fd::pidfd_getfd(pidfd(), number)
        .context("take descriptor " + std::to_string(number) + " from the QEMU with pid " +
                 std::to_string(pid()) + " (needs its user, or CAP_SYS_PTRACE)");
}

} // namespace liveupdate::supervisor::qemu
