// One thread for each CPU that now and then reads all clocks in a tight loop, and keeps patterns in the
// vector registers meanwhile. No clock may go back, on one CPU or from one to another; REALTIME and MONOTONIC
// may not move against each other, nor may MONOTONIC against the TSC; no register may change.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>

#include "tests/linux/guest/report.hpp"

namespace linux_guest {

struct ClockOptions {
    std::uint64_t spin_us = 2000;
    std::uint64_t rest_us = 18000;
    std::uint64_t step_us =
        1000; // how far two clocks may move against each other from one reading to the next
};

// What all threads have seen of each clock.
class SharedClocks {
public:
    static constexpr std::size_t kClocks = 4; // TSC, MONOTONIC, REALTIME, BOOTTIME

    // Reads clock `which` after what others have published; says so if it is behind.
    std::uint64_t read(std::size_t which, unsigned cpu);
    std::atomic<std::uint64_t> reads = 0;

private:
    struct alignas(64) Last {
        std::atomic<std::uint64_t> value = 0;
    };
    std::array<Last, kClocks> last_;
};

class ClockCheck : public Check {
public:
    ClockCheck(SharedClocks& clocks, unsigned cpu, ClockOptions options)
        : clocks_(clocks), cpu_(cpu), options_(options) {}
    void run(const std::atomic<bool>& stop) override;
    std::string progress() const override;

private:
    struct Reading {
        std::uint64_t tsc = 0, monotonic = 0, realtime = 0;
        bool tight = false; // read at once: no interruption in between
    };
    Reading read_all();
    void spin();
    void compare(const Reading& now);

    SharedClocks& clocks_;
    const unsigned cpu_;
    const ClockOptions options_;
    Reading first_, last_;
    bool rested_ = false; // since the last reading, which is no gap
    std::atomic<std::uint64_t> register_checks_ = 0;
    Maximum gap_ns_, step_ns_, wall_step_ns_;
};

// nanosleep and a periodic timerfd: never early, and none that stops.
class TimerCheck : public Check {
public:
    explicit TimerCheck(std::uint64_t period_us) : period_ns_(period_us * 1000) {}
    void run(const std::atomic<bool>& stop) override;
    std::string progress() const override;

private:
    void check_sleep();
    void check_timer(int fd);

    const std::uint64_t period_ns_;
    std::uint64_t first_ns_ = 0; // when the timerfd expires for the first time
    std::atomic<std::uint64_t> expirations_ = 0, sleeps_ = 0;
    Maximum sleep_late_ns_, timer_late_ns_;
};

} // namespace linux_guest
