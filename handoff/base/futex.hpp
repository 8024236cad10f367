// Waiting on a 32-bit word in memory, futex(2).
#pragma once

#include <cstdint>

#include "handoff/base/deadline.hpp"

namespace liveupdate {

// Who waits and wakes; the same for both. kShared: also processes that have the word's page mapped.
enum class FutexScope { kPrivate, kShared };

// Returns when the word is no longer `seen`, on a wake, a signal or at the deadline: callers look again.
void futex_wait(const void* word, uint32_t seen, Deadline deadline, FutexScope scope);
void futex_wake_all(const void* word, FutexScope scope);

} // namespace liveupdate
