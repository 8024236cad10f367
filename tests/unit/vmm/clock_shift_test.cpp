#include "vmm/kvm/clock_shift.hpp"

#include <doctest/doctest.h>

namespace liveupdate::vmm::test {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint64_t kThen = 5000 * kSecond; // when the guest was saved

ClockShift to(uint64_t now, uint64_t tsc = 0) {
    return {now - kThen, tsc};
}

// Channel 0 at 1 kHz, begun at `reference`, of whose ticks `owed` have not been delivered.
state::Vm vm_with_pit(uint64_t reference, uint64_t owed) {
    state::Vm vm;
    vm.set_clock_ns(77);
    vm.set_clock_at_ns(kThen);
    state::Pit& pit = *vm.mutable_pit();
    pit.add_channel()->set_count(1193);
    const uint64_t period = 1193 * kSecond / 1193182;
    pit.set_reference_ns(reference);
    pit.set_ticks_delivered((kThen - reference) / period - owed);
    return vm;
}

uint64_t owed_at(const state::Pit& pit, uint64_t now) {
    return (now - pit.reference_ns()) / (1193 * kSecond / 1193182) - pit.ticks_delivered();
}

TEST_CASE("a guest's TSC stands still between its save and its restore") {
    state::Vcpu vcpu;
    vcpu.set_tsc_offset(-1000);
    const uint64_t host_then = 5000, host_now = 90000;
    to(kThen, host_now - host_then).move(vcpu);
    CHECK(host_now + static_cast<uint64_t>(vcpu.tsc_offset()) == 4000);
    // A host that was started anew counts less than then.
    vcpu.set_tsc_offset(-1000);
    to(kThen, uint64_t{100} - host_then).move(vcpu);
    CHECK(100 + static_cast<uint64_t>(vcpu.tsc_offset()) == 4000);
}

TEST_CASE("a TSC that crosses as a value is set against the host's of now") {
    state::Vcpu vcpu;
    vcpu.set_without_tsc_offset(1);
    vcpu.set_tsc(4000);
    vcpu.set_tsc_host(5000);
    to(kThen, 85000).move(vcpu);
    CHECK(vcpu.tsc() == 4000);
    CHECK(vcpu.tsc_host() == 90000);
    CHECK(vcpu.tsc_offset() == 0);
}

TEST_CASE("kvmclock, local APIC and registers that changed late move as one") {
    const ClockShift shift = to(kThen + 10 * kSecond, 7);
    state::Vm vm = vm_with_pit(kThen - kSecond, 0);
    shift.move(vm);
    CHECK(vm.clock_ns() == 77);
    CHECK(vm.clock_at_ns() == kThen + 10 * kSecond);
    state::VcpuInterrupts interrupts;
    interrupts.set_saved_at_ns(kThen + 5);
    interrupts.mutable_registers()->set_tsc_offset(100);
    shift.move(interrupts);
    CHECK(interrupts.saved_at_ns() == kThen + 10 * kSecond + 5);
    CHECK(interrupts.registers().tsc_offset() == 93);
}

TEST_CASE("the PIT keeps its phase and the ticks that it owes") {
    const uint64_t now = kThen + 3600 * kSecond;
    state::Vm vm = vm_with_pit(kThen - 20 * kSecond, 3);
    const uint64_t delivered = vm.pit().ticks_delivered();
    to(now).move(vm);
    CHECK(vm.pit().reference_ns() == now - 20 * kSecond);
    CHECK(vm.pit().ticks_delivered() == delivered);
    CHECK(owed_at(vm.pit(), now) == 3);
}

TEST_CASE("a PIT that has counted for longer than the host is up keeps its phase and what it owes") {
    const uint64_t now = 60 * kSecond, period = 1193 * kSecond / 1193182;
    const uint64_t counted = 4000 * kSecond + 12345;
    state::Vm vm = vm_with_pit(kThen - counted, 3);
    to(now).move(vm);
    CHECK(vm.clock_at_ns() == now);
    CHECK(vm.pit().reference_ns() <= now);
    CHECK((now - vm.pit().reference_ns()) % period == counted % period);
    CHECK(owed_at(vm.pit(), now) == 3);
}

} // namespace
} // namespace liveupdate::vmm::test
