#include "supervisor/cli/console_relay.hpp"

#include <poll.h>
#include <unistd.h>

#include <algorithm>

#include "handoff/base/fd.hpp"

namespace liveupdate::supervisor::cli {
namespace {

constexpr short kReadable = POLLIN | POLLHUP | POLLERR;

// -1: try again later; EIO is how a pty says that its other end is closed.
ssize_t read_some(int from, char* buffer, size_t size) {
    const ssize_t n = ::read(from, buffer, size);
    if (n >= 0) return n;
    return errno == EINTR || errno == EAGAIN ? -1 : 0;
}

} // namespace

Result<RelayEnd> relay_console(int input, int output, int console, const std::function<bool()>& interrupted) {
    char buffer[4096];
    pollfd polls[2] = {{console, POLLIN, 0}, {input, POLLIN, 0}};
    while (!interrupted()) {
        if (::poll(polls, 2, -1) < 0) {
            if (errno == EINTR) continue;
            return Error::from_errno("wait");
        }
        if (polls[0].revents & kReadable) {
            const ssize_t n = read_some(console, buffer, sizeof(buffer));
            if (n == 0) return RelayEnd::kConsoleClosed;
            if (n > 0) TRY(fd::write_all(output, buffer, static_cast<size_t>(n)).context("output"));
        }
        if (polls[1].revents & kReadable) {
            const ssize_t n = read_some(input, buffer, sizeof(buffer));
            if (n == 0) polls[1].fd = -1; // poll(2) passes over it
            if (n <= 0) continue;
            const char* const leave = std::find(buffer, buffer + n, kLeaveKey);
            TRY(fd::write_all(console, buffer, static_cast<size_t>(leave - buffer)));
            if (leave != buffer + n) return RelayEnd::kLeft;
        }
    }
    return RelayEnd::kInterrupted;
}

} // namespace liveupdate::supervisor::cli
