// A mutex that can be waited for until a Deadline. std::timed_mutex would do, were it not that the thread
// sanitizer of GCC 12 does not know pthread_mutex_clocklock(), which it is made of.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "handoff/base/deadline.hpp"

namespace liveupdate::vmm {

class DeadlineMutex {
public:
    void lock() {
        std::unique_lock lock(mutex_);
        freed_.wait(lock, [this] { return !taken_; });
        taken_ = true;
    }

    // False when the deadline passed first.
    bool lock_until(Deadline deadline) {
        // Bounded, since adding "for ever" to the present time would overflow.
        constexpr std::chrono::nanoseconds kLongestWait = std::chrono::hours(1);
        std::unique_lock lock(mutex_);
        const auto wait = std::min(deadline.left(), kLongestWait);
        if (!freed_.wait_for(lock, wait, [this] { return !taken_; })) return false;
        taken_ = true;
        return true;
    }

    void unlock() {
        {
            const std::lock_guard lock(mutex_);
            taken_ = false;
        }
        freed_.notify_one();
    }

private:
    std::mutex mutex_;
    std::condition_variable freed_;
    bool taken_ = false;
};

} // namespace liveupdate::vmm
