#pragma once
/// Local APIC in xAPIC mode and I/O APIC, by MMIO from ring 3.
#include <cstdint>

namespace tests::guests {

/// A handler in interrupts.S.
using InterruptEntry = void (*)();

/// Points a vector at a handler, for all vCPUs.
void set_interrupt(unsigned vector, InterruptEntry entry);

/// Exceptions, calls into ring 0, spurious interrupts. Once, on vCPU 0, before anything else.
void initialize_interrupts();

/// Software-enables the calling vCPU's LAPIC with all its local vectors masked.
void initialize_lapic();

std::uint32_t lapic_id();

/// Fixed-mode, edge-triggered interrupt to one vCPU.
void send_ipi(std::uint32_t apic_id, unsigned vector);

/// LAPIC timer in TSC-deadline mode. The slot's deadline and period must be set before: the
/// handler goes by them.
void start_deadline_timer(unsigned vector, std::uint64_t deadline_tsc);

/// LAPIC timer in periodic mode; `period_ns` in nanoseconds below 2^32. The APIC bus runs at the
/// rate of CPUID leaf 0x40000010, or 1 GHz, which KVM and QEMU have without saying so.
void start_periodic_timer(unsigned vector, std::uint64_t period_ns);

/// Routes an I/O APIC pin to vCPU 0, edge-triggered, active high.
void route_pin(unsigned pin, unsigned vector);
void mask_pin(unsigned pin);

/// Starts vCPU `index`, whose APIC id is its index, and waits until it says it runs.
void start_vcpu(std::uint32_t index);

} // namespace tests::guests
