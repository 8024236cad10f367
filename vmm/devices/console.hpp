// The console's back end: a file, a pseudo-terminal or a socket that came from the supervisor as an fd, or
// nothing. Nothing is ever opened by path here.
//
// A loop of the caller serves it, on one thread:
//
//     fds.clear(); console.collect(fds);  poll(fds, console.next_wake().poll_ms());  console.dispatch(fds);
//
// Everything else may be called from any thread.
//
// Who reads the guest's output (ConsoleReader), by kind:
//   none    nobody, ever; output vanishes.
//   file    always attached, except for a second after a failed write (disk full).
//   socket  attached while a client is connected and takes bytes in; at most one client at a time, later
//           ones wait in the listener's backlog. A connected client that does not read holds the guest's
//           output up: it asked to see all of it. What a client sent before it hung up still reaches the
//           guest, unless the next client comes before the guest has read it.
//   pty     the supervisor keeps a slave open, so one cannot ask whether anybody else has. A reader is
//           therefore presumed until a write has found the terminal's buffer full for ConsoleTiming's
//           `away_after`; from then on it is away, until the buffer takes a byte again. A guest whose
//           terminal nobody reads waits for that time once, not for ever.
//
// Around an update. Both processes hold the same open files (O_NONBLOCK is shared, and wanted by both).
//   source       preparing:  freeze_client(), then hand client_fd() over with the other fds
//                pausing:    hold(), then save the device; nothing is read or written any more
//                rolling back, or abandoned:  unhold()
//   destination  is made on hold, with the client's fd; unhold() when it owns the guest
#pragma once

#include <poll.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"
#include "vmm/devices/console_backend.hpp"
#include "vmm/devices/deadline_mutex.hpp"

namespace liveupdate::vmm {

struct ConsoleTiming {
    std::chrono::nanoseconds away_after = std::chrono::seconds(1);
    // How long a file descriptor that failed is left alone.
    std::chrono::nanoseconds retry_after = std::chrono::seconds(1);
};

class Console final : public ConsoleBackend {
public:
    // Each takes its fds over, checks that they are of the kind they are said to be (they come from another
    // process) and returns a console that is on hold.
    static Result<std::unique_ptr<Console>> none();
    // A regular file or character device, open for writing with O_APPEND.
    static Result<std::unique_ptr<Console>> file(UniqueFd file, ConsoleTiming timing = {});
    // The master side of a pseudo-terminal, which whoever made it has put into raw mode: in cooked mode the
    // terminal would echo the guest's output back as its input.
    static Result<std::unique_ptr<Console>> pty(UniqueFd master, ConsoleTiming timing = {});
    // A listening unix stream socket; `client` is the one already connected, or an empty UniqueFd.
    static Result<std::unique_ptr<Console>> socket(
        UniqueFd listener, UniqueFd client, ConsoleTiming timing = {});

    // The device at the guest's end. Once, before the first unhold(); it must outlive the loop.
    void connect(ConsoleFrontend& frontend);

    // ConsoleBackend: any thread, never blocks.
    ConsoleReader reader() const override;
    void wake() override;

    // The loop's. `collect` appends the fds to poll; `dispatch` may be given the whole poll set, it looks for
    // its own fds. Both do nothing but take wake-ups while on hold.
    void collect(std::vector<pollfd>& fds) const;
    void dispatch(std::span<const pollfd> polled);
    // When dispatch() is to be called even if no fd is ready.
    Deadline next_wake() const;

    // Stops taking new clients, so that client_fd() stays what it is (a client may still hang up).
    void freeze_client();
    // Stops all reading and writing. Waits for a write that is under way, at most until `deadline`, after
    // which nothing has changed and the error is kTimeout.
    Result<void> hold(Deadline deadline);
    // Back to work, clients included.
    void unhold();

    // The connected client of a socket, -1 when there is none; borrowed, valid until the client hangs up.
    int client_fd() const;

private:
    enum class Kind { kNone, kFile, kPty, kSocket };
    // What the outside may do to us at present.
    enum class Flow { kHeld, kFrozen, kRunning };

    Console(Kind kind, UniqueFd stream, UniqueFd listener, UniqueFd wake_fd, ConsoleTiming timing);
    static Result<std::unique_ptr<Console>> make(
        Kind kind, UniqueFd stream, UniqueFd listener, ConsoleTiming timing);

    // All of these with io_mutex_ held, by the loop.
    void take_wake();
    void accept_client();
    void read_input();
    void write_output();
    void output_stalled();
    void stream_failed();
    void close_client();
    void tell_reader();
    void after_poll(short events);
    short wanted_events() const;
    ConsoleReader judge_reader() const;
    bool resting() const;
    bool wants_client() const;

    const Kind kind_;
    const ConsoleTiming timing_;
    const UniqueFd listener_;
    const UniqueFd wake_fd_;
    ConsoleFrontend* frontend_ = nullptr;

    // Held during reads and writes, so that hold() knows when they are over.
    mutable DeadlineMutex io_mutex_;
    UniqueFd stream_; // file, master or client
    Flow flow_ = Flow::kHeld;
    bool input_ended_ = false; // the client has shut down its sending side
    bool output_dead_ = false; // the client takes nothing any more
    bool hung_up_ = false;     // the client is gone; what it has sent is kept until the next one comes
    bool output_blocked_ = false;
    std::optional<Deadline> away_at_; // set while output is blocked
    std::optional<Deadline> retry_at_;

    std::atomic<ConsoleReader> reader_;
    std::atomic<bool> wake_pending_ = false;
    std::atomic<bool> hold_wanted_ = false;
};

} // namespace liveupdate::vmm
