#include "supervisor/qemu/state_stream.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

#include "handoff/base/fd.hpp"
#include "supervisor/qemu/run_state.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

constexpr auto kLook = std::chrono::milliseconds(20);
constexpr auto kStep = std::chrono::milliseconds(1);
constexpr size_t kPiece = size_t{1} << 20;
constexpr int64_t kAsFastAsItGoes = int64_t{1} << 40; // bytes/s: the guest stands still meanwhile

// Until `file` is ready for `events`, or its other end is gone.
Result<void> await(int file, short events, Deadline deadline, int cancel_fd) {
    pollfd polled[] = {{file, events, 0}, {cancel_fd, POLLIN, 0}};
    while (::poll(polled, 2, deadline.poll_ms()) < 0 && errno == EINTR) {
    }
    if (polled[1].revents != 0) return Error(ErrorCode::kAborted, "somebody asked for it to stop");
    if (polled[0].revents == 0) return Error(ErrorCode::kTimeout, "QEMU's migration does not go on");
    return {};
}

Result<UniqueFd> accept_from(const UniqueFd& listener, Deadline deadline, int cancel_fd) {
    TRY(await(listener.get(), POLLIN, deadline, cancel_fd));
    UniqueFd connection(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!connection) return Error::from_errno("accept QEMU's migration");
    return connection;
}

Result<std::string> read_all(const UniqueFd& connection, Deadline deadline, int cancel_fd) {
    std::string stream, piece(kPiece, '\0');
    for (;;) {
        TRY(await(connection.get(), POLLIN, deadline, cancel_fd));
        const ssize_t n = ::read(connection.get(), piece.data(), piece.size());
        if (n == 0) return stream;
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (n < 0 && errno == ECONNRESET) return stream; // how it ended QEMU tells
        if (n < 0) return Error::from_errno("read QEMU's migration");
        if (stream.size() + static_cast<size_t>(n) > kMostStream)
            return Error(ErrorCode::kRefused, "the guest has more than " + std::to_string(kMostStream >> 20) +
                                                  " MiB beside its RAM (the memory of a large graphics card, "
                                                  "for example), which is not saved");
        stream.append(piece, 0, static_cast<size_t>(n));
    }
}

Result<void> write_all(const UniqueFd& connection, const std::string& stream, Deadline deadline) {
    for (size_t at = 0; at < stream.size();) {
        TRY(await(connection.get(), POLLOUT, deadline, -1));
        const ssize_t n = ::send(connection.get(), stream.data() + at, stream.size() - at, MSG_NOSIGNAL);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (n < 0 && (errno == EPIPE || errno == ECONNRESET)) return {}; // why QEMU tells
        if (n < 0) return Error::from_errno("write QEMU's migration");
        at += static_cast<size_t>(n);
    }
    return {};
}

// "completed", or QEMU's words. A destination has none to tell before it has taken the connection, which may
// be after all of a short stream was sent.
Result<void> settle(QemuProcess& qemu, Deadline deadline) {
    std::string status;
    for (; status.empty() || status == "none"; ::usleep(std::chrono::microseconds(kStep).count())) {
        if (deadline.passed()) return Error(ErrorCode::kTimeout, "QEMU's migration does not begin");
        TRY_ASSIGN(status, settled_migration(qemu, deadline));
    }
    if (status == "completed") return {};
    TRY_ASSIGN(const nlohmann::json told, qemu.execute("query-migrate", nullptr, deadline));
    const std::string words = word_in(told, "error-desc");
    return Error(ErrorCode::kRefused, "QEMU's migration is " + status + (words.empty() ? "" : ": " + words));
}

} // namespace

Result<std::string> take_stream(
    QemuProcess& source, const QemuFolder& folder, Deadline deadline, int cancel_fd) {
    const std::string path = folder.migration_socket();
    TRY(source.execute("migrate-set-parameters", {{"max-bandwidth", kAsFastAsItGoes}}, deadline, cancel_fd));
    TRY_ASSIGN(const UniqueFd listener, fd::unix_listen(path, SOCK_STREAM, 1));
    const auto taken = [&]() -> Result<std::string> {
        TRY(source.execute("migrate", {{"uri", "unix:" + path}}, deadline));
        TRY_ASSIGN(const UniqueFd connection, accept_from(listener, deadline, cancel_fd));
        TRY_ASSIGN(std::string stream, read_all(connection, deadline, cancel_fd));
        TRY(settle(source, deadline));
        return stream;
    }();
    ::unlink(path.c_str());
    return taken;
}

Result<void> give_stream(
    QemuProcess& destination, const QemuFolder& folder, const std::string& stream, Deadline deadline) {
    const std::string path = folder.migration_socket();
    TRY(destination.execute("migrate-incoming", {{"uri", "unix:" + path}}, deadline));
    {
        TRY_ASSIGN(const UniqueFd connection, fd::unix_connect(path, SOCK_STREAM, deadline));
        if (::fcntl(connection.get(), F_SETFL, O_NONBLOCK) < 0)
            return Error::from_errno("connect to QEMU's migration");
        TRY(write_all(connection, stream, deadline));
    }
    return settle(destination, deadline);
}

Result<void> set_mapped_ram(QemuProcess& qemu, Deadline deadline, bool on) {
    nlohmann::json all = nlohmann::json::array();
    all.push_back({{"capability", kMappedRam}, {"state", on}});
    TRY(qemu.execute("migrate-set-capabilities", {{"capabilities", std::move(all)}}, deadline));
    return {};
}

Result<void> write_mapped(QemuProcess& source, const std::string& path, Deadline deadline, int cancel_fd) {
    TRY(source.execute("migrate-set-parameters", {{"max-bandwidth", kAsFastAsItGoes}}, deadline, cancel_fd));
    TRY(source.execute("migrate", {{"uri", "file:" + path}}, deadline));
    for (;;) {
        const auto step = deadline.earlier(Deadline::after(kLook));
        if (auto settled = settle(source, step); settled || settled.error().code != ErrorCode::kTimeout)
            return settled;
        if (deadline.passed()) return Error(ErrorCode::kTimeout, "QEMU's migration does not end");
        pollfd polled{cancel_fd, POLLIN, 0};
        if (::poll(&polled, 1, 0) > 0) return Error(ErrorCode::kAborted, "somebody asked for it to stop");
    }
}

Result<void> read_mapped(QemuProcess& destination, const std::string& path, Deadline deadline) {
    TRY(destination.execute("migrate-incoming", {{"uri", "file:" + path}}, deadline));
    return settle(destination, deadline);
}

} // namespace liveupdate::supervisor::qemu
