#include "vmm/devices/console_fds.hpp"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

namespace liveupdate::vmm {
namespace {

Result<int> socket_option(int fd, int option) {
    int value = 0;
    socklen_t size = sizeof value;
    if (::getsockopt(fd, SOL_SOCKET, option, &value, &size) != 0)
        return Error::from_errno("ask the fd for its socket options");
    return value;
}

Result<void> check_unix_stream(int fd) {
    TRY_ASSIGN(const int domain, socket_option(fd, SO_DOMAIN));
    TRY_ASSIGN(const int type, socket_option(fd, SO_TYPE));
    if (domain == AF_UNIX && type == SOCK_STREAM) return {};
    return Error(ErrorCode::kInvalid, "the fd is not a unix stream socket");
}

} // namespace

Result<void> set_nonblocking(int fd) {
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0) return Error::from_errno("read the fd's flags");
    if (::fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) return Error::from_errno("make the fd non-blocking");
    return {};
}

Result<void> check_console_file(int fd) {
    struct stat status {};
    if (::fstat(fd, &status) != 0) return Error::from_errno("look at the fd");
    if (!S_ISREG(status.st_mode) && !S_ISCHR(status.st_mode))
        return Error(ErrorCode::kInvalid, "the fd is neither a regular file nor a character device");
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0) return Error::from_errno("read the fd's flags");
    if ((flags & O_ACCMODE) == O_RDONLY) return Error(ErrorCode::kInvalid, "the fd is not open for writing");
    if ((flags & O_APPEND) == 0)
        return Error(ErrorCode::kInvalid, "the fd does not append; open it with O_APPEND");
    return {};
}

Result<void> prepare_console_pty(int fd) {
    unsigned number = 0;
    if (::ioctl(fd, TIOCGPTN, &number) != 0)
        return Error::from_errno("ask the fd for its number as the master of a pseudo-terminal");
    return set_nonblocking(fd);
}

Result<void> prepare_console_listener(int fd) {
    TRY(check_unix_stream(fd));
    TRY_ASSIGN(const int listens, socket_option(fd, SO_ACCEPTCONN));
    if (listens == 0) return Error(ErrorCode::kInvalid, "the socket does not listen");
    return set_nonblocking(fd);
}

Result<void> prepare_console_client(int fd) {
    TRY(check_unix_stream(fd));
    TRY_ASSIGN(const int listens, socket_option(fd, SO_ACCEPTCONN));
    if (listens != 0) return Error(ErrorCode::kInvalid, "the socket listens and is not a connection");
    return set_nonblocking(fd);
}

} // namespace liveupdate::vmm
