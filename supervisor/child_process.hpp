// A process that the supervisor has started, or has found: a pidfd, its end, and what it wrote to stderr.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"
#include "supervisor/open_binary.hpp"

namespace liveupdate::supervisor {

// A descriptor, borrowed, and the number under which the child has it.
struct ChildFd {
    int fd = -1;
    int number = -1; // 3..9 or above 9; one that is used by no other
};

class ChildProcess {
public:
    ChildProcess() = default;
    ChildProcess(ChildProcess&& other) noexcept;
    // Kills and reaps the process that was held here, if it lives.
    ChildProcess& operator=(ChildProcess&& other) noexcept;
    // Kills and reaps, unless the process was let go by forget().
    ~ChildProcess();

    // Starts `binary` with `arguments` (without the program's own name) in a process group of its own, with
    // no signal blocked, nothing of our service manager in its environment, stdin from nowhere, stdout and
    // stderr to last_words(), and of our descriptors only `fds`.
    static Result<ChildProcess> spawn(
        const OpenBinary& binary, const std::vector<std::string>& arguments, const std::vector<ChildFd>& fds);
    // One that a former supervisor has started. The caller knows that the number still means that process, or
    // has a pidfd that he got when it did.
    static Result<ChildProcess> find(pid_t pid);
    static ChildProcess find(pid_t pid, UniqueFd pidfd);

    explicit operator bool() const { return static_cast<bool>(pidfd_); }
    bool alive() const;
    // Waits at most until the deadline; true when it has ended, and is then reaped.
    bool await_end(Deadline deadline);
    // SIGKILL, and waits until every thread is gone.
    void kill();
    // Waits for an end of its own accord; kills at the deadline.
    void wait_or_kill(Deadline deadline);
    // The process lives on without us.
    void forget();

    // What it has written and nobody has read, made printable; the last 2 KiB.
    std::string last_words() const;
    // How it ended, in words: "was killed by signal 9", "exited with status 1". Empty while it is not reaped,
    // and when we are not its parent.
    const std::string& how_it_ended() const { return ended_; }

    pid_t pid() const { return pid_; }
    int pidfd() const { return pidfd_.get(); }

private:
    void reap();

    pid_t pid_ = 0;
    UniqueFd pidfd_;
    UniqueFd words_;
    std::string ended_;
    bool is_child_ = false;
};

// The end of a peer's text, for our own sentences: bounded, one line, printable.
std::string printable_end(std::string text, size_t limit);

} // namespace liveupdate::supervisor
