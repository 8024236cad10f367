// Readings and settings of a clock that a preempted thread must not shift.
#pragma once

#include <cstdint>

#include "handoff/base/deadline.hpp"

namespace liveupdate::vmm {

inline constexpr int kClockTries = 4;
inline constexpr uint64_t kClockTakesNs = 50'000; // far above an ioctl alone, far below what a guest minds

// attempt(before), with the CLOCK_MONOTONIC of its begin in ns, again until it has taken no longer than
// kClockTakesNs, at most kClockTries times: a thread that loses its CPU between a clock and its reference
// would shift the guest's clock by the time it lost. Returns what the last attempt returned; an error ends it
// at once.
template <typename Attempt>
auto undisturbed(Attempt attempt) -> decltype(attempt(uint64_t{})) {
    for (int tries = 1;; ++tries) {
        const uint64_t before = monotonic_ns();
        auto result = attempt(before);
        if (!result || tries == kClockTries || monotonic_ns() - before <= kClockTakesNs) return result;
    }
}

} // namespace liveupdate::vmm
