// The host's clocks, as a device with a clock of its own reads them.
#pragma once

#include <cstdint>
#include <ctime>

namespace liveupdate::vmm {

class HostClock {
public:
    HostClock() = default;
    HostClock(const HostClock&) = delete;
    HostClock& operator=(const HostClock&) = delete;
    virtual ~HostClock() = default;

    virtual uint64_t monotonic_ns() const = 0; // CLOCK_MONOTONIC: the same for every process of a host
    virtual uint64_t realtime_ns() const = 0;  // CLOCK_REALTIME: since 1970 in UTC
};

class SystemClock final : public HostClock {
public:
    uint64_t monotonic_ns() const override { return read(CLOCK_MONOTONIC); }
    uint64_t realtime_ns() const override { return read(CLOCK_REALTIME); }

private:
    static uint64_t read(clockid_t clock) {
        timespec ts{};
        ::clock_gettime(clock, &ts);
        return static_cast<uint64_t>(ts.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(ts.tv_nsec);
    }
};

} // namespace liveupdate::vmm
