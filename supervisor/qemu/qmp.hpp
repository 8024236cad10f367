// QEMU's machine protocol, QMP: JSON objects, one on a line, over a stream socket. See QEMU's
// docs/interop/qmp-spec. What QEMU sends is bounded and checked like any peer's.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"

namespace liveupdate::supervisor::qemu {

// The string under `key`, made printable and bounded; empty when there is none, or when `object` is none.
std::string word_in(const nlohmann::json& object, const char* key);

struct QmpEvent {
    std::string name;
    nlohmann::json data;  // an object; empty when the event has none
    uint64_t unix_us = 0; // when it happened, by QEMU's clock
};

// Borrows nothing; not for two threads at once.
class QmpChannel {
public:
    QmpChannel() = default;
    // Takes a connected socket, waits for QEMU's greeting and enters command mode.
    static Result<QmpChannel> open(UniqueFd socket, Deadline deadline, int cancel_fd = -1);
    // Goes on with a connection that somebody else has left, wherever he has stopped: QEMU drops what he has
    // not sent to its end, and has done all that he has; what he has not read is passed over.
    static Result<QmpChannel> resume(UniqueFd socket, Deadline deadline);

    // The return value of a command. kRefused with QEMU's own words when it says no; kPeerGone, kTimeout,
    // kAborted (cancel_fd became readable), kProtocol.
    Result<nlohmann::json> execute(
        const std::string& command, nlohmann::json arguments, Deadline deadline, int cancel_fd = -1);
    // The two halves of it, for commands that are to follow each other without waiting.
    Result<uint64_t> send(const std::string& command, nlohmann::json arguments, Deadline deadline);
    Result<nlohmann::json> answer(uint64_t id, Deadline deadline, int cancel_fd = -1);

    // Takes in what has arrived, without waiting. kPeerGone at the end; what came before it is there.
    Result<void> take_arrived();

    std::deque<QmpEvent>& events() { return events_; }
    const std::string& version() const { return version_; } // "7.2.22"
    int fd() const { return socket_.get(); }
    explicit operator bool() const { return static_cast<bool>(socket_); }
    void close() { socket_.reset(); }

private:
    Result<void> send_all(std::string_view bytes, const std::string& what, Deadline deadline);
    Result<void> await_input(Deadline deadline, int cancel_fd);
    Result<void> take_line(std::string_view line);
    Result<void> take_event(const nlohmann::json& message);
    Result<void> take_version(const nlohmann::json& version);

    UniqueFd socket_;
    std::string received_;
    std::string version_;
    std::string resumed_by_; // the id of the answer that what somebody else has left ends with
    std::deque<QmpEvent> events_;
    std::map<uint64_t, nlohmann::json> answers_; // whole messages of commands that nobody has waited for yet
    uint64_t last_id_ = 0;
};

} // namespace liveupdate::supervisor::qemu
