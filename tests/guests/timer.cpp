// Timer guest: no tick of the LAPIC timer, of the PIT, and no IPI may be lost or doubled.
//
// Options: period_us (1000), lapic (deadline; `periodic` for vCPU 1, or 0 if alone; `all` for
// periodic on all), early_us (20), pit (1), pit_hz (1000), ipi (1), ipi_us (1000), idle (spin; or
// `hlt`).
#include "tests/guests/runtime/apic.hpp"
#include "tests/guests/runtime/cpu.hpp"
#include "tests/guests/runtime/guest.hpp"
#include "tests/guests/runtime/options.hpp"
#include "tests/guests/runtime/pit.hpp"
#include "tests/guests/runtime/status.hpp"

extern "C" {
void timer_deadline_entry();
void timer_periodic_entry();
void pit_entry();
void ipi_entry();
}

namespace tests::guests {

const GuestKind kGuestKind = GuestKind::kTimer;

namespace {

constexpr unsigned kPeriodicVector = VECTOR_SERIAL; // no serial interrupts in this guest
constexpr std::uint64_t kStallUs = 2000000;
constexpr std::uint64_t kPitTrialUs = 500000;

bool has_deadline_timer() {
    return (cpuid(1).ecx >> 24 & 1) != 0;
}

TimerMode mode_of(const VcpuSlot& slot) {
    if (option_is("lapic", "all") || !has_deadline_timer()) return TimerMode::kPeriodic;
    const std::uint64_t periodic_vcpu = header().vcpus > 1 ? 1 : 0;
    return option_is("lapic", "periodic") && slot.index == periodic_vcpu ? TimerMode::kPeriodic
                                                                         : TimerMode::kTscDeadline;
}

/// Notices when a count that should rise does not.
class StallCheck {
public:
    StallCheck(const std::uint64_t& count, std::uint64_t period_us)
        : count_(count), watchdog_(kStallUs + 2 * period_us) {}

    bool stalled(std::uint64_t now) {
        const std::uint64_t count = read_field(count_);
        if (count != last_) {
            last_ = count;
            watchdog_.restart();
        }
        return watchdog_.expired(now);
    }

private:
    const std::uint64_t& count_;
    std::uint64_t last_ = 0;
    Watchdog watchdog_;
};

class LapicTimer {
public:
    explicit LapicTimer(TimerSlot& slot)
        : slot_(slot), period_us_(option_number("period_us", 1000)), stall_(slot.interrupts, period_us_),
          early_limit_(ticks_of_us(option_number("early_us", 20))) {}

    void start(TimerMode mode) {
        put(slot_.mode, static_cast<std::uint64_t>(mode));
        put(slot_.period_ticks, ticks_of_us(period_us_));
        if (mode == TimerMode::kPeriodic) {
            put(slot_.t0_tsc, read_tsc());
            start_periodic_timer(kPeriodicVector, period_us_ * 1000);
            return;
        }
        put(slot_.t0_tsc, read_tsc() + slot_.period_ticks);
        put(slot_.deadline_tsc, slot_.t0_tsc);
        start_deadline_timer(VECTOR_TIMER, slot_.t0_tsc);
    }

    void check(std::uint64_t now) {
        if (stall_.stalled(now)) {
            report_error(ErrorCode::kTimerLost, read_field(slot_.deadline_tsc), now);
        }
        const std::uint64_t early = read_field(slot_.early);
        if (early == early_seen_) return;
        early_seen_ = early;
        if (const std::uint64_t ticks = read_field(slot_.early_max_ticks); ticks > early_limit_) {
            report_error(ErrorCode::kTimerEarly, ticks, early);
        }
    }

private:
    TimerSlot& slot_;
    std::uint64_t period_us_;
    StallCheck stall_;
    std::uint64_t early_limit_;
    std::uint64_t early_seen_ = 0;
};

/// Channel 0, by pin 2 of the I/O APIC (its place on a PC) or else pin 0.
class PitTimer {
public:
    explicit PitTimer(TimerSlot& slot) : slot_(slot), stall_(slot.pit_interrupts, 0), trial_(kPitTrialUs) {}

    void start() {
        if (option_number("pit", 1) == 0) return;
        const std::uint64_t hz = option_number("pit_hz", 1000);
        const std::uint64_t divisor = kPitHz / (hz == 0 ? 1000 : hz);
        put(slot_.pit_divisor, divisor > 0xffff ? 0xffff : divisor);
        put(slot_.pit_pin, 2);
        route_pin(2, VECTOR_PIT);
        start_pit(static_cast<std::uint16_t>(slot_.pit_divisor));
        put(slot_.pit_start_tsc, read_tsc());
    }

    void check(std::uint64_t now) {
        if (slot_.pit_divisor == 0) return;
        const std::uint64_t count = read_field(slot_.pit_interrupts);
        if (count == 0 && slot_.pit_pin == 2 && trial_.expired(now)) {
            mask_pin(2);
            put(slot_.pit_pin, 0);
            route_pin(0, VECTOR_PIT);
            put(slot_.pit_start_tsc, read_tsc());
        }
        if (stall_.stalled(now)) report_error(ErrorCode::kPitLost, count, now);
    }

private:
    TimerSlot& slot_;
    StallCheck stall_;
    Watchdog trial_;
};

/// One IPI at a time from this vCPU to the next one in a ring.
class IpiPing {
public:
    explicit IpiPing(VcpuSlot& slot)
        : slot_(slot.timer), peer_(report().vcpus[(slot.index + 1) % header().vcpus]),
          from_(report().vcpus[(slot.index + header().vcpus - 1) % header().vcpus]), patience_(kStallUs),
          wait_(ticks_of_us(option_number("ipi_us", 1000))),
          enabled_(header().vcpus > 1 && option_number("ipi", 1) != 0) {}

    void check(std::uint64_t now) {
        if (!enabled_) return;
        // In this order: an IPI between the two reads makes `sent` larger, never `received`.
        const std::uint64_t received = read_field(slot_.ipi_received);
        const std::uint64_t sent_to_me = read_field(from_.timer.ipi_sent);
        if (received > sent_to_me + extra_) {
            extra_ = received - sent_to_me;
            report_error(ErrorCode::kIpiDoubled, received, sent_to_me);
        }
        if (in_flight_) {
            await(now);
        } else if (now >= next_ && all_started()) {
            patience_.restart();
            in_flight_ = true;
            sent_tsc_ = read_tsc();
            write_field(slot_.ipi_sent, slot_.ipi_sent + 1);
            send_ipi(static_cast<std::uint32_t>(peer_.apic_id), VECTOR_IPI);
        }
    }

private:
    void await(std::uint64_t now) {
        if (read_field(slot_.ipi_acked) == slot_.ipi_sent) {
            const std::uint64_t took = read_tsc() - sent_tsc_;
            if (took > slot_.ipi_max_ticks) put(slot_.ipi_max_ticks, took);
        } else if (patience_.expired(now)) {
            add(slot_.ipi_lost, 1);
            report_error(ErrorCode::kIpiLost, slot_.ipi_sent, now);
        } else {
            return;
        }
        in_flight_ = false;
        next_ = now + wait_;
    }

    static bool all_started() {
        return read_field(header().started) == (std::uint64_t{1} << header().vcpus) - 1;
    }

    TimerSlot& slot_;
    const VcpuSlot& peer_;
    const VcpuSlot& from_;
    Watchdog patience_;
    std::uint64_t wait_;
    bool enabled_;
    bool in_flight_ = false;
    std::uint64_t sent_tsc_ = 0;
    std::uint64_t next_ = 0;
    std::uint64_t extra_ = 0;
};

} // namespace

void set_up() {
    ReportHeader& head = header();
    if (has_deadline_timer()) put(head.features, head.features | kFeatureTscDeadline);
    if (option_is("idle", "hlt")) put(head.features, head.features | kFeatureHlt);
    set_interrupt(VECTOR_TIMER, timer_deadline_entry);
    set_interrupt(kPeriodicVector, timer_periodic_entry);
    set_interrupt(VECTOR_PIT, pit_entry);
    set_interrupt(VECTOR_IPI, ipi_entry);
    for (std::size_t i = 0; i < head.vcpus; ++i) {
        const VcpuSlot& from = report().vcpus[(i + head.vcpus - 1) % head.vcpus];
        put(report().vcpus[i].timer.ipi_from, reinterpret_cast<std::uint64_t>(&from));
    }
}

void run(VcpuSlot& slot) {
    const bool halts = (header().features & kFeatureHlt) != 0;
    LapicTimer timer(slot.timer);
    PitTimer pit(slot.timer);
    IpiPing ping(slot);
    timer.start(mode_of(slot));
    if (slot.index == 0) pit.start();
    for (std::uint64_t counter = 1;; ++counter) {
        const std::uint64_t now = read_tsc();
        put(slot.now_tsc, now);
        put(slot.counter, counter);
        timer.check(now);
        pit.check(now);
        ping.check(now);
        if (slot.index == 0) obey_stop();
        if (halts) halt();
    }
}

} // namespace tests::guests
