// One VMM process as its supervisor sees it: a pidfd, a session, and what it said of itself.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <deque>
#include <string>
#include <vector>

#include "handoff/baton.hpp"
#include "handoff/channel.hpp"
#include "handoff/proto/session.pb.h"
#include "supervisor/child_process.hpp"
#include "supervisor/open_binary.hpp"

namespace liveupdate::supervisor {

class VmmProcess {
public:
    VmmProcess() = default;
    VmmProcess(VmmProcess&&) = default;
    // Kills and reaps the process that was held here, if it lives.
    VmmProcess& operator=(VmmProcess&& other) noexcept;
    // Kills and reaps, unless the process was let go by forget().
    ~VmmProcess();

    // Starts `binary`, connects to its session socket at `socket_path`, exchanges Hello and Offer. Errors
    // name the binary and carry the last words it wrote to stderr.
    static Result<VmmProcess> spawn(const OpenBinary& binary, handoff::Participant participant,
        const std::string& socket_path, Deadline deadline, int cancel_fd);

    // Connects to a VMM that a former supervisor started. kNotFound when nobody listens there.
    static Result<VmmProcess> connect(const std::string& socket_path, Deadline deadline);

    // Sends a request and waits for its answer; guest events that come in between are kept in events(). A
    // Failure becomes its error; any other kind than `wanted` is kProtocol. The death of the process ends the
    // wait with kPeerGone.
    Result<handoff::Received> request(handoff::proto::Message message,
        const std::vector<handoff::FdToSend>& fds, handoff::proto::Message::BodyCase wanted,
        Deadline deadline, int cancel_fd = -1);
    // The halves of request().
    Result<void> send(
        handoff::proto::Message message, const std::vector<handoff::FdToSend>& fds, Deadline deadline);
    Result<handoff::Received> await(
        handoff::proto::Message::BodyCase wanted, Deadline deadline, int cancel_fd = -1);
    Result<void> tell(handoff::proto::Message message);

    // Takes what has arrived without being asked for; false once the session or the process is gone.
    bool drain_events();
    std::deque<handoff::proto::GuestEvent>& events() { return events_; }

    explicit operator bool() const { return static_cast<bool>(process_); }
    bool alive() const { return process_.alive(); }
    // SIGKILL, and waits until every thread is gone.
    void kill();
    // Waits for an end of its own accord; kills at the deadline.
    void wait_or_kill(Deadline deadline);
    // The process lives on without us.
    void forget();
    // What it has written to stderr and nobody has read, made printable; the last 2 KiB.
    std::string last_words() const { return process_.last_words(); }
    // How it ended, in words: "was killed by signal 9", "exited with status 1". Empty when we are not its
    // parent.
    std::string how_it_ended() const { return process_.how_it_ended(); }

    pid_t pid() const { return process_.pid(); }
    int pidfd() const { return process_.pidfd(); }
    // The socket file that the VMM listens at (O_PATH): nobody answers there once the VMM is gone.
    int session_file() const { return session_file_.get(); }
    int channel_fd() const { return channel_.fd(); }
    handoff::Participant participant() const { return participant_; }
    const OpenBinary& binary() const { return binary_; }
    // Its binary, for a rollback to it; this process must not be asked for it any more.
    OpenBinary take_binary() { return std::move(binary_); }
    const handoff::proto::Offer& offer() const { return offer_; }

private:
    Result<void> start(const std::string& socket_path);
    Result<void> greet(Deadline deadline, int cancel_fd);
    Result<void> keep(const handoff::proto::GuestEvent& event);
    Error gone();

    ChildProcess process_;
    handoff::Channel channel_;
    std::string socket_path_;
    UniqueFd session_file_;
    handoff::Participant participant_ = 0;
    OpenBinary binary_;
    handoff::proto::Offer offer_;
    std::deque<handoff::proto::GuestEvent> events_;
};

} // namespace liveupdate::supervisor
