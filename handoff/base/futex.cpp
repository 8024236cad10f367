#include "handoff/base/futex.hpp"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <ctime>

namespace liveupdate {
namespace {

int operation(int shared, FutexScope scope) {
    return scope == FutexScope::kPrivate ? shared | FUTEX_PRIVATE_FLAG : shared;
}

} // namespace

void futex_wait(const void* word, uint32_t seen, Deadline deadline, FutexScope scope) {
    timespec until{};
    timespec* limit = nullptr;
    if (deadline.poll_ms() >= 0) {
        const uint64_t ns = deadline.ns();
        until.tv_sec = static_cast<time_t>(ns / 1'000'000'000u);
        until.tv_nsec = static_cast<long>(ns % 1'000'000'000u);
        limit = &until;
    }
    // FUTEX_WAIT_BITSET takes an absolute CLOCK_MONOTONIC time.
    ::syscall(
        SYS_futex, word, operation(FUTEX_WAIT_BITSET, scope), seen, limit, nullptr, FUTEX_BITSET_MATCH_ANY);
}

void futex_wake_all(const void* word, FutexScope scope) {
    ::syscall(SYS_futex, word, operation(FUTEX_WAKE, scope), INT32_MAX, nullptr, nullptr, 0);
}

} // namespace liveupdate
