#include "handoff/base/fd.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdio>

namespace liveupdate::fd {
namespace {

Result<UniqueFd> checked(int raw, std::string_view what) {
    if (raw < 0) return Error::from_errno(what);
    return UniqueFd(raw);
}

Result<sockaddr_un> unix_address(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof(address.sun_path))
        return Error(ErrorCode::kInvalid,
            "socket path " + path + " is longer than the " + std::to_string(sizeof(address.sun_path) - 1) +
                " bytes a unix socket may have; use a shorter runtime directory");
    path.copy(address.sun_path, path.size());
    return address;
}

} // namespace

Result<UniqueFd> open(const std::string& path, int flags, mode_t mode) {
    return checked(::open(path.c_str(), flags | O_CLOEXEC, mode), "open " + path);
}

Result<UniqueFd> dup(int fd) {
    return checked(::fcntl(fd, F_DUPFD_CLOEXEC, 3), "duplicate fd");
}

Result<UniqueFd> memfd_create(const std::string& name, unsigned flags) {
    return checked(::memfd_create(name.c_str(), flags | MFD_CLOEXEC), "memfd_create " + name);
}

Result<UniqueFd> eventfd(unsigned initial) {
    return checked(::eventfd(initial, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd");
}

Result<UniqueFd> pidfd_open(pid_t pid) {
    return checked(
        static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)), "pidfd_open of pid " + std::to_string(pid));
}

Result<UniqueFd> pidfd_getfd(int pidfd, int number) {
    UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd, number, 0))); // close-on-exec by itself
    if (!fd) return Error::from_errno("pidfd_getfd");
    return fd;
}

Result<std::pair<UniqueFd, UniqueFd>> socketpair(int type) {
    int fds[2];
    if (::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds) < 0) return Error::from_errno("socketpair");
    return std::pair{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

Result<UniqueFd> unix_listen(const std::string& path, int type, int backlog) {
    TRY_ASSIGN(const sockaddr_un address, unix_address(path));
    TRY_ASSIGN(UniqueFd socket, checked(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0), "socket"));
    ::unlink(path.c_str());
    if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) < 0)
        return Error::from_errno("bind " + path);
    if (::listen(socket.get(), backlog) < 0) return Error::from_errno("listen on " + path);
    return socket;
}

Result<UniqueFd> unix_connect(const std::string& path, int type) {
    TRY_ASSIGN(const sockaddr_un address, unix_address(path));
    TRY_ASSIGN(UniqueFd socket, checked(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0), "socket"));
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) < 0)
        return Error::from_errno("connect to " + path);
    return socket;
}

// connect(2) of a full queue says EAGAIN, and nothing tells when there is room.
Result<UniqueFd> unix_connect(const std::string& path, int type, Deadline deadline) {
    TRY_ASSIGN(const sockaddr_un address, unix_address(path));
    TRY_ASSIGN(UniqueFd socket, checked(::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), "socket"));
    while (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) < 0) {
        if (errno != EAGAIN && errno != EINTR) return Error::from_errno("connect to " + path);
        if (deadline.passed())
            return Error(ErrorCode::kTimeout,
                "connect to " + path + ": whoever listens there takes no more connections; it may hang");
        ::usleep(1000);
    }
    if (::fcntl(socket.get(), F_SETFL, 0) < 0) return Error::from_errno("fcntl of a socket");
    return socket;
}

Result<std::string> read_file(const std::string& path, size_t limit) {
    TRY_ASSIGN(UniqueFd file, open(path, O_RDONLY));
    std::string content;
    char buffer[16384];
    for (;;) {
        const ssize_t n = ::read(file.get(), buffer, sizeof(buffer));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return Error::from_errno("read " + path);
        if (n == 0) return content;
        if (content.size() + static_cast<size_t>(n) > limit)
            return Error(ErrorCode::kInvalid, path + " is larger than " + std::to_string(limit) + " bytes");
        content.append(buffer, static_cast<size_t>(n));
    }
}

Result<void> write_all(int fd, const void* data, size_t size) {
    const char* at = static_cast<const char*>(data);
    while (size > 0) {
        const ssize_t n = ::write(fd, at, size);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return Error::from_errno("write");
        at += n;
        size -= static_cast<size_t>(n);
    }
    return {};
}

Result<void> pwrite_all(int fd, const void* data, size_t size, uint64_t offset) {
    const char* at = static_cast<const char*>(data);
    while (size > 0) {
        const ssize_t n = ::pwrite(fd, at, size, static_cast<off_t>(offset));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return Error::from_errno("write");
        at += n;
        size -= static_cast<size_t>(n);
        offset += static_cast<uint64_t>(n);
    }
    return {};
}

Result<void> write_file_atomically(const std::string& path, const std::string& content, mode_t mode) {
    const std::string beside = path + ".new";
    TRY_ASSIGN(UniqueFd file, open(beside, O_WRONLY | O_CREAT | O_TRUNC, mode));
    TRY(write_all(file.get(), content.data(), content.size()).context(beside));
    if (::fsync(file.get()) < 0) return Error::from_errno("fsync " + beside);
    if (::rename(beside.c_str(), path.c_str()) < 0) return Error::from_errno("rename to " + path);
    return {};
}

bool process_gone(int pidfd) {
    pollfd poll{pidfd, POLLIN, 0};
    return ::poll(&poll, 1, 0) == 1 && (poll.revents & POLLIN) != 0;
}

Result<void> pidfd_send_signal(int pidfd, int signal) {
    if (::syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0) < 0)
        return Error::from_errno("pidfd_send_signal");
    return {};
}

} // namespace liveupdate::fd
