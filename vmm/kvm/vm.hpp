// A KVM VM: memory slots, interrupt controllers, PIT, clock. Belongs to the address space that made it.
#pragma once

#include <span>

#include <linux/kvm.h>

#include <cstdint>
#include <mutex>

#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"
#include "vmm/kvm/system.hpp"

namespace liveupdate::vmm {

class Vm {
public:
    // Without memory and chips.
    static Result<Vm> create(const KvmSystem& system);
    // Irqchip, PIT and the routing of a PC: GSI 0 reaches PIC pin 0 and I/O APIC pin 2. After the memory:
    // each chip's ports are freed of their former table by call_srcu(), and what waits for that grace period
    // next, as a new memory slot does, waits for some milliseconds.
    Result<void> add_chips();

    int fd() const { return fd_.get(); }

    // host_address stays mapped for as long as the VM exists.
    Result<void> add_memory(uint32_t slot, uint64_t gpa, uint64_t size, void* host_address, bool read_only);
    // Of a slot that was added, with the same values: what vCPUs and KVM write there is logged, or no longer.
    enum class WriteLogging { kOff, kOn };
    Result<void> log_writes(
        uint32_t slot, uint64_t gpa, uint64_t size, void* host_address, WriteLogging logging) const;
    // What was logged since the last time: bit n is the slot's page n. `bits` holds a multiple of 8 bytes, a
    // bit for each page.
    Result<void> take_writes(uint32_t slot, std::span<uint64_t> bits) const;
    Result<UniqueFd> create_vcpu(unsigned index);

    Result<void> set_irq(uint32_t gsi, bool level) const;
    // An edge on the line; false when it merged with one that the guest has not seen yet.
    Result<bool> pulse_irq(uint32_t gsi) const;

    // `acks` counts, as an eventfd does, how often the guest has ended an interrupt of this line. `trigger`
    // is an eventfd that nobody need write to.
    Result<void> count_acks(uint32_t gsi, int trigger, int acks) const;

    // Each write to `event` is an edge on the line, from here on.
    Result<void> add_irqfd(uint32_t gsi, int event) const;
    // A guest's 4-byte write of `value` to `gpa` signals `event` instead of leaving KVM_RUN.
    Result<void> add_ioeventfd(uint64_t gpa, uint32_t value, int event) const;

    Result<kvm_irqchip> irqchip(uint32_t chip) const;
    Result<void> set_irqchip(kvm_irqchip chip) const;
    Result<kvm_pit_state2> pit() const;
    Result<void> set_pit(kvm_pit_state2 pit) const;
    // Whether KVM remembers ticks of the PIT that the guest has not taken, and raises them again.
    Result<void> set_pit_reinject(bool reinject) const;
    Result<kvm_clock_data> clock() const;
    Result<void> set_clock(kvm_clock_data clock) const;

private:
    explicit Vm(UniqueFd fd) : fd_(std::move(fd)) {}
    Result<void> route_interrupts() const;

    UniqueFd fd_;
};

} // namespace liveupdate::vmm
