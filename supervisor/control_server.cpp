#include "supervisor/control_server.hpp"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <map>

#include "handoff/base/fd.hpp"
#include "supervisor/control_connection.hpp"

namespace liveupdate::supervisor {
namespace {

constexpr int kBacklog = 64;

// Answers without waiting: an empty socket buffer has room for one line.
void turn_away(int socket, const Error& error) {
    const std::string line = to_line({{"error", error_to_json(error)}});
    static_cast<void>(!::send(socket, line.data(), line.size(), MSG_DONTWAIT | MSG_NOSIGNAL));
}

Result<UniqueFd> listen_at(const ControlServerOptions& options) {
    if (fd::unix_connect(options.path, SOCK_STREAM))
        return Error(ErrorCode::kBusy, "another supervisor answers at " + options.path + "; stop it first");
    TRY_ASSIGN(UniqueFd listener, fd::unix_listen(options.path, SOCK_STREAM | SOCK_NONBLOCK, kBacklog));
    if (options.access.group && ::chown(options.path.c_str(), uid_t(-1), *options.access.group) < 0)
        return Error::from_errno("give " + options.path + " to group " + options.access.group_name);
    if (::chmod(options.path.c_str(), 0660) < 0) return Error::from_errno("chmod " + options.path);
    return listener;
}

bool listens_at(int socket, const std::string& path) {
    sockaddr_un address{};
    socklen_t size = sizeof(address);
    int listening = 0;
    socklen_t listening_size = sizeof(listening);
    struct stat there {};
    return socket >= 0 && ::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size) == 0 &&
           address.sun_family == AF_UNIX && path == address.sun_path &&
           ::getsockopt(socket, SOL_SOCKET, SO_ACCEPTCONN, &listening, &listening_size) == 0 &&
           listening != 0 && ::lstat(path.c_str(), &there) == 0 && S_ISSOCK(there.st_mode);
}

} // namespace

class ControlServer::Inner {
public:
    Inner(systemd::EventLoop& loop, ControlHandler& handler, ControlServerOptions options)
        : loop_(loop), handler_(handler), options_(std::move(options)) {}
    ~Inner();
    Result<void> start(UniqueFd inherited);
    int listener() const { return listener_.get(); }
    size_t clients() const { return connections_.size(); }

private:
    void accept_all();
    void take(UniqueFd socket);
    void shed_one();

    systemd::EventLoop& loop_;
    ControlHandler& handler_;
    const ControlServerOptions options_;
    UniqueFd listener_;
    UniqueFd spare_; // given up for a moment when this process has no fd left
    systemd::Source source_;
    struct stat bound_ {};
    std::map<ControlConnection*, std::shared_ptr<ControlConnection>> connections_;
};

ControlServer::Inner::~Inner() {
    source_.reset();
    connections_.clear();
    struct stat now {};
    const bool ours = listener_ && ::lstat(options_.path.c_str(), &now) == 0 && now.st_ino == bound_.st_ino &&
                      now.st_dev == bound_.st_dev;
    if (ours) ::unlink(options_.path.c_str());
}

Result<void> ControlServer::Inner::start(UniqueFd inherited) {
    UniqueFd listener = std::move(inherited);
    if (!listens_at(listener.get(), options_.path)) {
        listener.reset(); // else it would answer as another supervisor
        TRY_ASSIGN(listener, listen_at(options_));
    }
    if (::lstat(options_.path.c_str(), &bound_) < 0) return Error::from_errno("stat " + options_.path);
    listener_ = std::move(listener);
    TRY_ASSIGN(spare_, fd::open("/dev/null", O_RDONLY));
    TRY_ASSIGN(source_, loop_.add_io(listener_.get(), EPOLLIN, [this](uint32_t) { accept_all(); }));
    return {};
}

void ControlServer::Inner::accept_all() {
    for (;;) {
        UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        if (socket) {
            take(std::move(socket));
        } else if (errno == EMFILE || errno == ENFILE) {
            return shed_one();
        } else if (errno != EINTR && errno != ECONNABORTED) {
            return; // EAGAIN: all are taken
        }
    }
}

// Without this the waiting client would wake the loop again and again.
void ControlServer::Inner::shed_one() {
    spare_.reset();
    const UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket)
        turn_away(socket.get(),
            Error(ErrorCode::kBusy, "the supervisor has no file descriptor left; try again later"));
    if (auto opened = fd::open("/dev/null", O_RDONLY)) spare_ = std::move(*opened);
}

void ControlServer::Inner::take(UniqueFd socket) {
    const auto peer = peer_credentials(socket.get());
    if (!peer) return turn_away(socket.get(), peer.error());
    if (const auto allowed = check_access(options_.access, *peer, ::geteuid()); !allowed)
        return turn_away(socket.get(), allowed.error());
    if (connections_.size() >= options_.most_clients)
        return turn_away(socket.get(),
            Error(ErrorCode::kBusy,
                std::to_string(connections_.size()) + " clients are connected already; try again later"));
    auto connection = std::make_shared<ControlConnection>(std::move(socket), loop_, handler_, options_,
        [this](ControlConnection* gone) { connections_.erase(gone); });
    if (!connection->start()) return;
    connections_.emplace(connection.get(), connection);
}

ControlServer::ControlServer(std::unique_ptr<Inner> inner) : inner_(std::move(inner)) {}
ControlServer::~ControlServer() = default;
size_t ControlServer::clients() const {
    return inner_->clients();
}

int ControlServer::listener() const {
    return inner_->listener();
}

Result<std::unique_ptr<ControlServer>> ControlServer::create(
    systemd::EventLoop& loop, ControlHandler& handler, ControlServerOptions options, UniqueFd inherited) {
    auto inner = std::make_unique<Inner>(loop, handler, std::move(options));
    TRY(inner->start(std::move(inherited)).context("control socket"));
    return std::unique_ptr<ControlServer>(new ControlServer(std::move(inner)));
}

} // namespace liveupdate::supervisor
