#include "supervisor/qemu/listening_sockets.hpp"

#include <fcntl.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <memory>

#include "handoff/base/fd.hpp"
#include "handoff/base/listening.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

constexpr int kBacklog = 16;
// QEMU removes the file that a socket was bound to when it closes it, while the other QEMU of the guest
// listens there: so it is bound to this name, and renamed.
constexpr char kBoundSuffix = '~';

bool is_socket(const std::string& path) {
    struct stat status {};
    return ::lstat(path.c_str(), &status) == 0 && S_ISSOCK(status.st_mode);
}

// Of a file that is a socket. Who listens is asked of the kernel first: a connection would wait in his queue.
// He may listen in another network namespace, though.
bool is_dead(const std::string& path) {
    if (is_listening(path) || is_listening(path + kBoundSuffix)) return false;
    const auto somebody = fd::unix_connect(path, SOCK_STREAM, Deadline::after(std::chrono::seconds(0)));
    return !somebody && somebody.error().system_errno == ECONNREFUSED;
}

Result<UniqueFd> listen_at_path(const std::string& path) {
    if (::access(path.c_str(), F_OK) == 0) {
        if (!is_socket(path))
            return Error(ErrorCode::kInvalid, path + " is no socket, and is not replaced by one");
        if (!is_dead(path)) return Error(ErrorCode::kBusy, "somebody else listens at " + path);
    }
    const std::string bound = path + kBoundSuffix;
    if (::access(bound.c_str(), F_OK) == 0 && !is_socket(bound))
        return Error(ErrorCode::kInvalid, bound + " is in the way of the socket " + path + "; move it away");
    TRY_ASSIGN(UniqueFd socket, fd::unix_listen(bound, SOCK_STREAM, kBacklog));
    if (::rename(bound.c_str(), path.c_str()) < 0) {
        const Error error = Error::from_errno("rename " + bound);
        ::unlink(bound.c_str());
        return error;
    }
    return socket;
}

using Addresses = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

Result<Addresses> resolve(const std::string& host, const std::string& port, int family, int type, int flags) {
    addrinfo hints{};
    hints.ai_family = family;
    hints.ai_socktype = type;
    hints.ai_flags = flags;
    addrinfo* list = nullptr;
    const int failed = ::getaddrinfo(host.empty() ? nullptr : host.c_str(), port.c_str(), &hints, &list);
    if (failed != 0) return Error(ErrorCode::kInvalid, ::gai_strerror(failed));
    return Addresses(list, &::freeaddrinfo);
}

// Only what this one hears from its peer is for the guest.
Result<void> connect_to_peer(int socket, int family, const ListeningSocket& at) {
    const std::string words = at.peer_host + ":" + at.peer_port;
    auto peer = resolve(at.peer_host, at.peer_port, family, SOCK_DGRAM, 0);
    if (!peer) return std::move(peer).error().context(words + " is no address");
    if (::connect(socket, (*peer)->ai_addr, (*peer)->ai_addrlen) < 0)
        return Error::from_errno("connect to " + words);
    return {};
}

bool listen_as(const UniqueFd& socket, const addrinfo& address) {
    const int on = 1;
    const bool streams = address.ai_socktype == SOCK_STREAM;
    if (!socket) return false;
    if (streams && ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0) return false;
    return ::bind(socket.get(), address.ai_addr, address.ai_addrlen) == 0 &&
           (!streams || ::listen(socket.get(), kBacklog) == 0);
}

Result<UniqueFd> listen_at_address(const ListeningSocket& at) {
    const std::string words = at.host + ":" + at.port;
    const int type = at.has_peer() ? SOCK_DGRAM : SOCK_STREAM;
    auto list = resolve(at.host, at.port, at.family, type, AI_PASSIVE);
    if (!list) return std::move(list).error().context(words + " is no address of this host");
    Error last(ErrorCode::kInternal, words);
    for (const addrinfo* each = list->get(); each != nullptr; each = each->ai_next) {
        UniqueFd socket(::socket(each->ai_family, type | SOCK_CLOEXEC, each->ai_protocol));
        if (listen_as(socket, *each)) {
            auto connected =
                at.has_peer() ? connect_to_peer(socket.get(), each->ai_family, at) : Result<void>();
            if (connected) return socket;
            last = std::move(connected).error(); // of another family, perhaps
            continue;
        }
        last = errno == EADDRINUSE ? Error(ErrorCode::kBusy, "somebody else listens at " + words)
                                   : Error::from_errno("listen at " + words);
        if (last.code == ErrorCode::kBusy) break;
    }
    return last;
}

bool has_on(int file, int option, int wanted) {
    int value = 0;
    socklen_t size = sizeof(value);
    return ::getsockopt(file, SOL_SOCKET, option, &value, &size) == 0 && value == wanted;
}

} // namespace

// Several QEMUs are told of one client, and only one can accept it: the others must not wait for the next.
Result<UniqueFd> listen_at(const ListeningSocket& at) {
    TRY_ASSIGN(UniqueFd socket, at.path.empty() ? listen_at_address(at) : listen_at_path(at.path));
    if (::fcntl(socket.get(), F_SETFL, O_NONBLOCK) < 0) return Error::from_errno("fcntl of a socket");
    return socket;
}

bool listens_for_guest(int file) {
    if (has_on(file, SO_ACCEPTCONN, 1)) return true;
    sockaddr_storage peer{};
    socklen_t size = sizeof(peer);
    return has_on(file, SO_TYPE, SOCK_DGRAM) &&
           ::getpeername(file, reinterpret_cast<sockaddr*>(&peer), &size) == 0 &&
           (peer.ss_family == AF_INET || peer.ss_family == AF_INET6);
}

std::string path_of(int socket) {
    sockaddr_un address{};
    socklen_t size = sizeof(address);
    if (::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size) < 0) return {};
    if (address.sun_family != AF_UNIX || size <= offsetof(sockaddr_un, sun_path)) return {};
    std::string path(address.sun_path, ::strnlen(address.sun_path, size - offsetof(sockaddr_un, sun_path)));
    if (path.ends_with(kBoundSuffix)) path.pop_back();
    return path;
}

void remove_dead_socket(const std::string& path) {
    if (is_socket(path) && is_dead(path)) ::unlink(path.c_str());
}

} // namespace liveupdate::supervisor::qemu
