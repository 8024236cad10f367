#include "tests/guests/runtime/power.hpp"

#include <cstdint>

#include "tests/guests/runtime/cpu.hpp"
#include "tests/guests/runtime/status.hpp"

namespace tests::guests {

namespace {

// Byte accesses are as good as any.
constexpr std::uint16_t kPmStatus = 0x600, kPmEnable = 0x602, kPmControl = 0x604, kPmTimer = 0x608;
constexpr std::uint8_t kButton = 0x01;           // bit 8
constexpr std::uint8_t kSoftOff = 0x20 | 5 << 2; // SLP_EN and SLP_TYP, from bit 10 on
constexpr std::uint64_t kPmTimerHz = 3579545;

/// Compares two clocks over ever longer times, within what one reading of both takes.
class PmTimerWatch {
public:
    PmTimerWatch() : begun_(read()) {}

    void check() {
        const Reading now = read();
        const std::uint64_t elapsed = static_cast<std::uint32_t>(now.timer - begun_.timer);
        const std::uint64_t least = timer_ticks(now.tsc_before - begun_.tsc_after);
        const std::uint64_t most = timer_ticks(now.tsc_after - begun_.tsc_before);
        // The host's clock may be slewed, and the TSC's frequency is known in kHz: a thousandth, and 1 ms.
        const std::uint64_t slack = most / 1000 + kPmTimerHz / 1000;
        if (elapsed + slack >= least && elapsed <= most + slack) return;
        report_error(ErrorCode::kPmTimerJump, elapsed, now.tsc_before - begun_.tsc_after);
        begun_ = now;
    }

private:
    struct Reading {
        std::uint64_t tsc_before;
        std::uint32_t timer;
        std::uint64_t tsc_after;
    };
    static Reading read() {
        Reading reading{};
        reading.tsc_before = read_tsc();
        reading.timer = in32(kPmTimer);
        reading.tsc_after = read_tsc();
        return reading;
    }
    static std::uint64_t timer_ticks(std::uint64_t tsc_ticks) {
        const std::uint64_t ms = tsc_ticks / header().tsc_khz;
        const std::uint64_t rest = tsc_ticks % header().tsc_khz;
        return ms * kPmTimerHz / 1000 + rest * kPmTimerHz / 1000 / header().tsc_khz;
    }

    Reading begun_;
};

} // namespace

void power_off() {
    out8(kPmControl + 1, kSoftOff);
}

void await_button() {
    out8(kPmEnable + 1, kButton);
    PmTimerWatch watch;
    write_field(header().stop, kStopNone);
    while ((in8(kPmStatus + 1) & kButton) == 0)
        watch.check();
    out8(kPmStatus + 1, kButton);
}

} // namespace tests::guests
