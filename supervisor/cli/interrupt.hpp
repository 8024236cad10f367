// SIGINT and SIGTERM, counted while a command wants to react to them itself.
#pragma once

#include <csignal>

namespace liveupdate::supervisor::cli {

// While it lives, the signals are counted and do nothing else; system calls return EINTR. One at a time.
class InterruptGuard {
public:
    InterruptGuard();
    InterruptGuard(const InterruptGuard&) = delete;
    InterruptGuard& operator=(const InterruptGuard&) = delete;
    ~InterruptGuard();

    // Since the guard was made. From any thread.
    static int count();

private:
    struct sigaction former_int_ {};
    struct sigaction former_term_ {};
};

} // namespace liveupdate::supervisor::cli
