#include "tests/linux/guest/clock_check.hpp"

#include <sched.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include <cerrno>
#include <cstring>

#include "tests/linux/guest/vector_registers.hpp"

namespace linux_guest {
namespace {

constexpr std::array<clockid_t, 4> kIds = {-1, CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME};
constexpr std::array<const char*, 4> kNames = {"TSC", "MONOTONIC", "REALTIME", "BOOTTIME"};
constexpr std::uint64_t kTightNs = 3000;
constexpr std::uint64_t kSecondNs = 1'000'000'000;
constexpr std::uint64_t kRateNs = 200'000'000; // a shorter time tells too little about the TSC's rate
constexpr std::uint64_t kSpins = 2000;         // of PAUSE while the registers hold their patterns
using ULL = unsigned long long;

std::uint64_t raw(std::size_t which) {
    _mm_lfence();
    if (which == 0) return __rdtsc();
    timespec now{};
    ::clock_gettime(kIds[which], &now);
    return static_cast<std::uint64_t>(now.tv_sec) * kSecondNs + static_cast<std::uint64_t>(now.tv_nsec);
}

std::uint64_t distance(std::uint64_t a, std::uint64_t b) {
    return a > b ? a - b : b - a;
}

void settle_on(unsigned cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    ::sched_setaffinity(0, sizeof(set), &set);
}

} // namespace

std::uint64_t SharedClocks::read(std::size_t which, unsigned cpu) {
    const std::uint64_t before = last_[which].value.load();
    const std::uint64_t now = raw(which);
    if (now < before)
        error(text("clock %s went back by %llu on CPU %u: %llu after %llu", kNames[which], ULL{before - now},
            cpu, ULL{now}, ULL{before}));
    std::uint64_t seen = before;
    while (now > seen && !last_[which].value.compare_exchange_weak(seen, now)) {
    }
    reads.fetch_add(1, std::memory_order_relaxed);
    return now;
}

ClockCheck::Reading ClockCheck::read_all() {
    Reading now;
    const std::uint64_t begin = clocks_.read(1, cpu_);
    now.tsc = clocks_.read(0, cpu_);
    now.monotonic = clocks_.read(1, cpu_);
    now.realtime = clocks_.read(2, cpu_);
    clocks_.read(3, cpu_);
    now.tight = clocks_.read(1, cpu_) - begin < kTightNs;
    return now;
}

// Clocks against each other, between two readings that nothing interrupted.
void ClockCheck::compare(const Reading& now) {
    if (last_.tight && !rested_) gap_ns_.see(now.monotonic - last_.monotonic);
    rested_ = false;
    if (!now.tight) return;
    if (!first_.tight) first_ = now;
    if (last_.tight) {
        const std::uint64_t elapsed = now.monotonic - last_.monotonic;
        const std::uint64_t wall = distance(now.realtime - last_.realtime, elapsed);
        wall_step_ns_.see(wall);
        if (wall > options_.step_us * 1000) error(text("clock REALTIME stepped by %llu ns", ULL{wall}));
        if (last_.monotonic - first_.monotonic > kRateNs) {
            const double ns_per_tick = static_cast<double>(last_.monotonic - first_.monotonic) /
                                       static_cast<double>(last_.tsc - first_.tsc);
            const auto by_tsc =
                static_cast<std::uint64_t>(static_cast<double>(now.tsc - last_.tsc) * ns_per_tick);
            const std::uint64_t step = distance(by_tsc, elapsed);
            step_ns_.see(step);
            if (step > options_.step_us * 1000)
                error(text("clock MONOTONIC moved by %llu ns on CPU %u while the TSC moved by %llu ns",
                    ULL{elapsed}, cpu_, ULL{by_tsc}));
        }
    }
    last_ = now;
}

void ClockCheck::spin() {
    const std::uint64_t end = now_ns() + options_.spin_us * 1000;
    last_.tight = last_.tight && end - last_.monotonic < kSecondNs; // rates are not known that well
    while (now_ns() < end) {
        for (int i = 0; i < 50; ++i)
            compare(read_all());
        if (const std::string lost = check_vector_registers(kSpins); !lost.empty()) error(lost);
        ++register_checks_;
    }
}

void ClockCheck::run(const std::atomic<bool>& stop) {
    settle_on(cpu_);
    while (!stop) {
        spin();
        sleep_us(options_.rest_us);
        rested_ = true;
    }
}

std::string ClockCheck::progress() const {
    return text("clock cpu=%u reads=%llu registers=%llu gap_us=%llu step_ns=%llu wall_step_ns=%llu", cpu_,
        ULL{clocks_.reads.load()}, ULL{register_checks_.load()}, ULL{gap_ns_.value() / 1000},
        ULL{step_ns_.value()}, ULL{wall_step_ns_.value()});
}

void TimerCheck::check_sleep() {
    const std::uint64_t before = now_ns();
    sleep_us(period_ns_ / 1000);
    const std::uint64_t slept = now_ns() - before;
    if (slept < period_ns_) error(text("nanosleep woke after %llu ns, early", ULL{slept}));
    sleep_late_ns_.see(slept - std::min(slept, period_ns_));
    ++sleeps_;
}

void TimerCheck::check_timer(int fd) {
    std::uint64_t count = 0;
    if (::read(fd, &count, sizeof(count)) != sizeof(count)) {
        error(text("timerfd: %s", std::strerror(errno)));
        return;
    }
    const std::uint64_t now = now_ns(), total = expirations_ += count;
    const std::uint64_t last_due = first_ns_ + (total - 1) * period_ns_;
    if (now < last_due) error(text("timerfd expired %llu ns early", ULL{last_due - now}));
    timer_late_ns_.see(now - std::min(now, last_due));
}

void TimerCheck::run(const std::atomic<bool>& stop) {
    const int fd = ::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    first_ns_ = now_ns() + period_ns_;
    itimerspec when{};
    when.it_value = {static_cast<time_t>(first_ns_ / kSecondNs), static_cast<long>(first_ns_ % kSecondNs)};
    when.it_interval = {
        static_cast<time_t>(period_ns_ / kSecondNs), static_cast<long>(period_ns_ % kSecondNs)};
    if (fd < 0 || ::timerfd_settime(fd, TFD_TIMER_ABSTIME, &when, nullptr) != 0) {
        error(text("timerfd: %s", std::strerror(errno)));
        return;
    }
    while (!stop) {
        check_timer(fd);
        check_sleep();
    }
    ::close(fd);
}

std::string TimerCheck::progress() const {
    return text("timers expirations=%llu late_us=%llu sleeps=%llu late_us=%llu", ULL{expirations_.load()},
        ULL{timer_late_ns_.value() / 1000}, ULL{sleeps_.load()}, ULL{sleep_late_ns_.value() / 1000});
}

} // namespace linux_guest
