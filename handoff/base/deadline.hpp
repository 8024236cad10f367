// A point in CLOCK_MONOTONIC time after which a step has failed. Steps take a Deadline, never a timeout,
// so that nested steps share one limit.
#pragma once

#include <chrono>
#include <climits>
#include <cstdint>
#include <ctime>

namespace liveupdate {

class Deadline {
public:
    using Clock = std::chrono::steady_clock; // CLOCK_MONOTONIC on Linux

    // A span that the clock cannot count never ends.
    static Deadline after(std::chrono::nanoseconds span) {
        const auto now = Clock::now();
        return span > Clock::time_point::max() - now ? never() : Deadline(now + span);
    }
    // From nanoseconds of CLOCK_MONOTONIC, as it travels between processes of one host. Any value may come
    // from a peer; one beyond the clock's range never comes.
    static Deadline at_ns(uint64_t ns) {
        if (ns > uint64_t{INT64_MAX}) return never();
        return Deadline(Clock::time_point(std::chrono::nanoseconds(static_cast<int64_t>(ns))));
    }
    static Deadline never() { return Deadline(Clock::time_point::max()); }

    bool passed() const { return Clock::now() >= at_; }
    std::chrono::nanoseconds left() const {
        const auto now = Clock::now();
        return now >= at_ ? std::chrono::nanoseconds(0) : at_ - now;
    }
    // For poll(2): rounded up, so that a wait never ends just before the deadline.
    int poll_ms() const {
        if (at_ == Clock::time_point::max()) return -1;
        const auto ms = std::chrono::ceil<std::chrono::milliseconds>(left()).count();
        return ms > INT_MAX ? INT_MAX : static_cast<int>(ms);
    }
    // For ppoll(2); null when there is no end to wait for.
    const timespec* ppoll_time(timespec& storage) const {
        if (at_ == Clock::time_point::max()) return nullptr;
        const auto rest = left().count();
        storage = {static_cast<time_t>(rest / 1'000'000'000), static_cast<long>(rest % 1'000'000'000)};
        return &storage;
    }
    uint64_t ns() const {
        return static_cast<uint64_t>(
            std::chrono::duration_cast<std::chrono::nanoseconds>(at_.time_since_epoch()).count());
    }
    Deadline earlier(Deadline other) const { return at_ < other.at_ ? *this : other; }

private:
    explicit Deadline(Clock::time_point at) : at_(at) {}
    Clock::time_point at_;
};

// Nanoseconds of CLOCK_MONOTONIC.
inline uint64_t monotonic_ns() {
    timespec ts{};
    ::clock_gettime(CLOCK_MONOTONIC, &ts);
    return static_cast<uint64_t>(ts.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(ts.tv_nsec);
}

} // namespace liveupdate
