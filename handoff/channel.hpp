// One end of a SOCK_SEQPACKET unix socket that carries session messages with file descriptors.
//
// Framing: one proto::Message per packet, at most kMaxPacket bytes, with at most kMaxFds descriptors by
// SCM_RIGHTS, each named in Message.fd_names. A packet that breaks one of these rules is refused, its
// descriptors closed. The kernel vouches for the sender (SCM_CREDENTIALS).
#pragma once

#include <sys/types.h>

#include <map>
#include <string>
#include <vector>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"
#include "handoff/proto/session.pb.h"

namespace liveupdate::handoff {

struct PeerCredentials {
    pid_t pid = 0;
    uid_t uid = 0;
    gid_t gid = 0;
};

using NamedFds = std::map<std::string, UniqueFd>;

// Borrowed descriptors to send, by name.
struct FdToSend {
    std::string name;
    int fd;
};

struct Received {
    proto::Message message;
    NamedFds fds;
    PeerCredentials sender;
};

// Takes the fd of that name out of `fds`; refuses in words when it is not there.
Result<UniqueFd> take_fd(NamedFds& fds, const std::string& name);

class Channel {
public:
    static constexpr size_t kMaxPacket = 128 * 1024;
    static constexpr size_t kMaxFds = 64;

    Channel() = default;
    // Owns `socket` and asks the kernel for credentials on it.
    explicit Channel(UniqueFd socket);

    int fd() const { return socket_.get(); }
    explicit operator bool() const { return static_cast<bool>(socket_); }
    void close() { socket_.reset(); }

    // kPeerGone when the other end is closed. Never blocks longer than the deadline.
    Result<void> send(proto::Message message, const std::vector<FdToSend>& fds, Deadline deadline);
    Result<void> send(proto::Message message, Deadline deadline) {
        return send(std::move(message), {}, deadline);
    }

    // Waits for one message. `cancel_fd`, when given, ends the wait with kAborted once it is readable.
    Result<Received> receive(Deadline deadline, int cancel_fd = -1);

private:
    UniqueFd socket_;
};

// The words for a message's kind, e.g. "trial_saved".
std::string kind_of(const proto::Message& message);

} // namespace liveupdate::handoff
