#include "vmm/kvm/clock_shift.hpp"

#include <algorithm>

#include "handoff/base/host_clocks.hpp"

namespace liveupdate::vmm {
namespace {

constexpr uint64_t kPitHz = 1'193'182;

// Channel 0 began to count longer ago than this host has been up: then as many whole periods later as leave
// the guest the ticks that it is owed.
void count_from_later(state::Pit& pit, uint64_t stopped_ns) {
    if (pit.channel_size() == 0) return;
    const uint32_t count = pit.channel(0).count();
    const uint64_t period = (count == 0 ? 0x10000u : count) * 1'000'000'000ull / kPitHz;
    if (period == 0) return;
    const uint64_t counted = stopped_ns - pit.reference_ns();
    const uint64_t periods = counted / period;
    const uint64_t owed = periods - std::min(periods, pit.ticks_delivered());
    pit.set_reference_ns(stopped_ns - counted % period - owed * period);
    pit.set_ticks_delivered(std::min(pit.ticks_delivered(), uint64_t{pit.in_flight()}));
}

} // namespace

ClockShift ClockShift::since(uint64_t monotonic, uint64_t counter) {
    const HostClocks now = host_clocks();
    return {now.monotonic_ns - monotonic, now.tsc - counter};
}

void ClockShift::move(state::Vcpu& vcpu) const {
    if (vcpu.without_tsc_offset() != 0)
        vcpu.set_tsc_host(vcpu.tsc_host() + tsc);
    else
        vcpu.set_tsc_offset(static_cast<int64_t>(static_cast<uint64_t>(vcpu.tsc_offset()) - tsc));
}

void ClockShift::move(state::VcpuInterrupts& interrupts) const {
    interrupts.set_saved_at_ns(interrupts.saved_at_ns() + monotonic_ns);
    if (interrupts.has_registers()) move(*interrupts.mutable_registers());
}

void ClockShift::move(state::Vm& vm) const {
    const uint64_t stopped_ns = vm.clock_at_ns();
    vm.set_clock_at_ns(stopped_ns + monotonic_ns);
    state::Pit& pit = *vm.mutable_pit();
    if (stopped_ns >= pit.reference_ns() && stopped_ns - pit.reference_ns() > vm.clock_at_ns())
        count_from_later(pit, stopped_ns);
    pit.set_reference_ns(pit.reference_ns() + monotonic_ns);
}

} // namespace liveupdate::vmm
