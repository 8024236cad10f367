// Clock guest: every vCPU watches time in a tight loop, and with it whether it runs at all.
//
// Options: gap_us (50), skew_us (100), kvmclock (0), regs (0), regs_ms (100), witness (none).
#include "tests/guests/runtime/cpu.hpp"
#include "tests/guests/runtime/guest.hpp"
#include "tests/guests/runtime/kvmclock.hpp"
#include "tests/guests/runtime/memory.hpp"
#include "tests/guests/runtime/options.hpp"
#include "tests/guests/runtime/registers.hpp"
#include "tests/guests/runtime/status.hpp"

namespace tests::guests {

const GuestKind kGuestKind = GuestKind::kClock;

namespace {

constexpr std::uint64_t kWitnessStride = 64;
constexpr std::uint64_t kSharedEvery = 64;    // iterations
constexpr std::uint64_t kIncrementEvery = 16; // of these

std::uint64_t witness_gpa;
std::uint64_t skew_limit;
std::uint64_t register_period;

/// Gaps between two successive TSC reads of one vCPU.
class GapLog {
public:
    explicit GapLog(VcpuSlot& slot)
        : clock_(slot.clock), records_(report().gaps[slot.index]), limit_(header().gap_ticks) {}

    void note(std::uint64_t last, std::uint64_t now) {
        const std::uint64_t gap = now - last;
        if (gap <= limit_) return;
        GapRecord& record = records_[clock_.gap_count % kGapRecords];
        put(record.start_tsc, last);
        put(record.end_tsc, now);
        add(clock_.gap_sum_ticks, gap);
        if (gap > clock_.gap_max_ticks) {
            put(clock_.gap_max_start_tsc, last);
            put(clock_.gap_max_ticks, gap);
        }
        // Last, with a release: a host that sees the count sees the record.
        write_field(clock_.gap_count, clock_.gap_count + 1);
    }

private:
    ClockSlot& clock_;
    GapRecord* records_;
    std::uint64_t limit_;
};

class WitnessCheck {
public:
    explicit WitnessCheck(VcpuSlot& slot)
        : clock_(slot.clock),
          epoch_(reinterpret_cast<const std::uint64_t*>(witness_gpa + slot.index * kWitnessStride)) {}

    void check() {
        if (witness_gpa == 0) return;
        const std::uint64_t epoch = read_field(*epoch_);
        if (epoch == last_) return;
        if (epoch < last_) report_error(ErrorCode::kWitnessBackwards, last_, epoch);
        last_ = epoch;
        put(clock_.witness_epoch, epoch);
        add(clock_.witness_changes, 1);
    }

private:
    ClockSlot& clock_;
    const std::uint64_t* epoch_;
    std::uint64_t last_ = 0;
};

/// Against the other vCPUs: their TSC and a counter in RAM that all of them raise.
class SharedCheck {
public:
    explicit SharedCheck(ClockSlot& clock) : clock_(clock) {}

    void check() {
        ReportHeader& head = header();
        const std::uint64_t others = read_field(head.shared_tsc);
        const std::uint64_t mine = read_tsc();
        if (others > mine) {
            const std::uint64_t lag = others - mine;
            if (lag > clock_.skew_max_ticks) put(clock_.skew_max_ticks, lag);
            if (lag > skew_limit) report_error(ErrorCode::kTscSkew, others, mine);
        } else {
            write_field(head.shared_tsc, mine);
        }

        const std::uint64_t counter = read_field(head.shared_counter);
        if (counter < counter_) {
            report_error(ErrorCode::kSharedCounterBackwards, counter_, counter);
        }
        counter_ = counter;
        if (++checks_ % kIncrementEvery == 0) {
            __atomic_fetch_add(&head.shared_counter, 1, __ATOMIC_RELAXED);
        }
    }

private:
    ClockSlot& clock_;
    std::uint64_t counter_ = 0;
    std::uint64_t checks_ = 0;
};

class KvmclockCheck {
public:
    explicit KvmclockCheck(VcpuSlot& slot) : clock_(slot.clock) {
        if ((header().features & kFeatureKvmclock) != 0) kvmclock_.enable(slot.index);
    }

    void check() {
        if (!kvmclock_.enabled()) return;
        const Kvmclock::Reading now = kvmclock_.read();
        add(clock_.kvmclock_reads, 1);
        put(clock_.kvmclock_ns, now.ns);
        if (now.stopped) add(clock_.kvmclock_stopped, 1);
        if (clock_.kvmclock_reads > 1) compare(now);
        last_ = now;
    }

private:
    void compare(const Kvmclock::Reading& now) {
        if (now.version != last_.version) add(clock_.kvmclock_updates, 1);
        if (now.ns < last_.ns) report_error(ErrorCode::kKvmclockBackwards, last_.ns, now.ns);
        const auto by_tsc = static_cast<std::int64_t>((now.tsc - last_.tsc) * 1000000 / header().tsc_khz);
        std::int64_t step = static_cast<std::int64_t>(now.ns - last_.ns) - by_tsc;
        if (step < 0) step = -step;
        if (static_cast<std::uint64_t>(step) > clock_.kvmclock_step_max_ns) {
            put(clock_.kvmclock_step_max_ns, static_cast<std::uint64_t>(step));
        }
    }

    ClockSlot& clock_;
    Kvmclock kvmclock_;
    Kvmclock::Reading last_{};
};

} // namespace

void set_up() {
    ReportHeader& head = header();
    put(head.gap_ticks, ticks_of_us(option_number("gap_us", 50)));
    skew_limit = ticks_of_us(option_number("skew_us", 100));
    register_period = ticks_of_us(1000 * option_number("regs_ms", 100));
    witness_gpa = option_number("witness", 0);
    if (witness_gpa != 0) {
        map_page(witness_gpa);
        put(head.features, head.features | kFeatureWitness);
    }
    if (option_number("kvmclock", 0) != 0 && Kvmclock::offered()) {
        put(head.features, head.features | kFeatureKvmclock);
    }
    if (option_number("regs", 0) != 0) put(head.features, head.features | kFeatureRegisters);
}

void run(VcpuSlot& slot) {
    GapLog gaps(slot);
    WitnessCheck witness(slot);
    SharedCheck shared(slot.clock);
    KvmclockCheck kvmclock(slot);
    RegisterCheck registers(slot, register_period);
    std::uint64_t last = read_tsc();
    for (std::uint64_t counter = 1;; ++counter) {
        const std::uint64_t now = read_tsc();
        if (now < last) {
            report_error(ErrorCode::kTscBackwards, last, now);
        } else {
            gaps.note(last, now);
        }
        last = now;
        put(slot.now_tsc, now);
        put(slot.counter, counter);
        witness.check();
        if (counter % kSharedEvery != 0) continue;
        shared.check();
        kvmclock.check();
        registers.check(now);
        if (slot.index == 0) obey_stop();
    }
}

} // namespace tests::guests
