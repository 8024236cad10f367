#include "handoff/channel.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <cstring>

#include "handoff/base/words.hpp"

namespace liveupdate::handoff {
namespace {

constexpr size_t kControlSpace = CMSG_SPACE(Channel::kMaxFds * sizeof(int)) + CMSG_SPACE(sizeof(ucred));

Result<void> wait_for(int socket, short events, Deadline deadline, int cancel_fd) {
    for (;;) {
        pollfd polled[2] = {{socket, events, 0}, {cancel_fd, POLLIN, 0}};
        const int n = ::poll(polled, cancel_fd >= 0 ? 2 : 1, deadline.poll_ms());
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return Error::from_errno("poll");
        if (n == 0) {
            if (!deadline.passed()) continue;
            return Error(ErrorCode::kTimeout, "no answer before the deadline");
        }
        if (polled[0].revents != 0) return {}; // an error shows up in the call that follows
        return Error(ErrorCode::kAborted, "asked to stop");
    }
}

struct ControlData {
    std::vector<UniqueFd> fds;
    PeerCredentials sender;
};

ControlData take_control_data(msghdr& header) {
    ControlData out;
    for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
        if (c->cmsg_level != SOL_SOCKET) continue;
        if (c->cmsg_type == SCM_RIGHTS) {
            const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            for (size_t i = 0; i < count; ++i) {
                int raw = -1;
                std::memcpy(&raw, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
                out.fds.emplace_back(raw);
            }
        } else if (c->cmsg_type == SCM_CREDENTIALS) {
            ucred who{};
            std::memcpy(&who, CMSG_DATA(c), sizeof(who));
            out.sender = {who.pid, who.uid, who.gid};
        }
    }
    return out;
}

Error send_error() {
    if (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN)
        return {ErrorCode::kPeerGone, "the peer has closed the session"};
    return Error::from_errno("sendmsg");
}

} // namespace

Result<UniqueFd> take_fd(NamedFds& fds, const std::string& name) {
    const auto found = fds.find(name);
    if (found == fds.end())
        return Error(
            ErrorCode::kProtocol, "the file descriptor '" + name + "' did not come with the message");
    UniqueFd fd = std::move(found->second);
    fds.erase(found);
    return fd;
}

std::string kind_of(const proto::Message& message) {
    const auto* body = message.GetDescriptor()->FindOneofByName("body");
    const auto* field = message.GetReflection()->GetOneofFieldDescriptor(message, body);
    return field == nullptr ? "empty or unknown message" : field->name();
}

Channel::Channel(UniqueFd socket) : socket_(std::move(socket)) {
    const int on = 1;
    if (socket_) ::setsockopt(socket_.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof(on));
}

Result<void> Channel::send(proto::Message message, const std::vector<FdToSend>& fds, Deadline deadline) {
    if (fds.size() > kMaxFds) return Error(ErrorCode::kInternal, "too many file descriptors for one message");
    for (const FdToSend& fd : fds)
        message.add_fd_names(fd.name);
    std::string packet;
    if (!message.SerializeToString(&packet) || packet.size() > kMaxPacket)
        return Error(ErrorCode::kInternal, kind_of(message) + " needs " + std::to_string(packet.size()) +
                                               " bytes, more than one packet has");

    alignas(cmsghdr) char control[kControlSpace] = {};
    iovec data{packet.data(), packet.size()};
    msghdr header{};
    header.msg_iov = &data;
    header.msg_iovlen = 1;
    if (!fds.empty()) {
        header.msg_control = control;
        header.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
        cmsghdr* c = CMSG_FIRSTHDR(&header);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
        for (size_t i = 0; i < fds.size(); ++i)
            std::memcpy(CMSG_DATA(c) + i * sizeof(int), &fds[i].fd, sizeof(int));
    }
    for (;;) {
        if (::sendmsg(socket_.get(), &header, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return {};
        if (errno == EINTR) continue;
        if (errno != EAGAIN) return send_error();
        TRY(wait_for(socket_.get(), POLLOUT, deadline, -1));
    }
}

Result<Received> Channel::receive(Deadline deadline, int cancel_fd) {
    TRY(wait_for(socket_.get(), POLLIN, deadline, cancel_fd));
    std::string packet(kMaxPacket, '\0');
    alignas(cmsghdr) char control[kControlSpace] = {};
    iovec data{packet.data(), packet.size()};
    msghdr header{};
    header.msg_iov = &data;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
    ssize_t size = -1;
    do
        size = ::recvmsg(socket_.get(), &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    while (size < 0 && errno == EINTR);
    if (size < 0 && errno == ECONNRESET)
        return Error(ErrorCode::kPeerGone, "the peer has closed the session");
    if (size < 0) return Error::from_errno("recvmsg");
    ControlData taken = take_control_data(header);
    // Credentials come with every packet, also with an empty one, and not with the end.
    if (size == 0 && taken.sender.pid == 0)
        return Error(ErrorCode::kPeerGone, "the peer has closed the session");
    if ((header.msg_flags & MSG_TRUNC) != 0)
        return Error(ErrorCode::kProtocol, "the peer sent a packet of more than 128 KiB");
    if ((header.msg_flags & MSG_CTRUNC) != 0)
        return Error(ErrorCode::kProtocol, "the peer sent more file descriptors than a message may carry");

    Received received;
    received.sender = taken.sender;
    if (!received.message.ParseFromArray(packet.data(), static_cast<int>(size)))
        return Error(
            ErrorCode::kProtocol, "the peer sent " + std::to_string(size) + " bytes that are no message");
    const auto& names = received.message.fd_names();
    if (static_cast<size_t>(names.size()) != taken.fds.size())
        return Error(
            ErrorCode::kProtocol, kind_of(received.message) + " names " + std::to_string(names.size()) +
                                      " file descriptors and carries " + std::to_string(taken.fds.size()));
    for (int i = 0; i < names.size(); ++i) {
        const bool fresh =
            received.fds.emplace(names[i], std::move(taken.fds[static_cast<size_t>(i)])).second;
        if (!fresh)
            return Error(
                ErrorCode::kProtocol, "two file descriptors have the name '" + printable(names[i], 64) + "'");
    }
    return received;
}

} // namespace liveupdate::handoff
