#pragma once
/// The guest's side of the report, errors, and the end of the VM.
#include <cstdint>

#include "tests/guests/report.hpp"

namespace tests::guests {

inline Report& report() {
    return *reinterpret_cast<Report*>(kReportGpa);
}
inline ReportHeader& header() {
    return report().header;
}

/// The slot of the vCPU that asks, by way of its GS base.
inline VcpuSlot& this_slot() {
    std::uint64_t index;
    asm volatile("movq %%gs:0, %0" : "=r"(index));
    return report().vcpus[index];
}

/// Writes one field with a single plain store. The only writer of a field uses this.
inline void put(std::uint64_t& field, std::uint64_t value) {
    __atomic_store_n(&field, value, __ATOMIC_RELAXED);
}

/// Adds to a field that only this vCPU writes; not atomic, so not for fields that others write.
inline void add(std::uint64_t& field, std::uint64_t value) {
    put(field, __atomic_load_n(&field, __ATOMIC_RELAXED) + value);
}

/// Counts an error, and keeps the first one of all vCPUs with its arguments.
void report_error(ErrorCode code, std::uint64_t arg0, std::uint64_t arg1);

/// Ends the VM through the debug-exit port; spins where that port does nothing.
[[noreturn]] void exit_vm(std::uint32_t value);

/// Ends or resets the VM as `command`, a StopCommand other than kStopNone, says.
[[noreturn]] void stop_vm(std::uint64_t command);

/// Stops if the host asked for it. For vCPU 0, every now and then.
inline void obey_stop() {
    if (const std::uint64_t command = read_field(header().stop); command != kStopNone) {
        stop_vm(command);
    }
}

/// TSC ticks in a number of microseconds.
inline std::uint64_t ticks_of_us(std::uint64_t us) {
    return us * header().tsc_khz / 1000;
}

/// Notices that something has not happened for a while, in time that the guest itself saw: a gap
/// (the guest did not run) counts as at most 1 ms, so a paused guest reports no false stall.
class Watchdog {
public:
    /// `limit_us`: guest time without `restart` after which `expired` says so, once.
    explicit Watchdog(std::uint64_t limit_us) : limit_(ticks_of_us(limit_us)), step_(ticks_of_us(1000)) {}

    void restart() {
        seen_ = 0;
        last_ = 0;
    }

    bool expired(std::uint64_t now_tsc) {
        const std::uint64_t gap = last_ == 0 ? 0 : now_tsc - last_;
        last_ = now_tsc;
        const bool before = seen_ >= limit_;
        seen_ += gap < step_ ? gap : step_;
        return !before && seen_ >= limit_;
    }

private:
    std::uint64_t limit_;
    std::uint64_t step_;
    std::uint64_t seen_ = 0;
    std::uint64_t last_ = 0;
};

} // namespace tests::guests
