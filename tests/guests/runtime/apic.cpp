#include "tests/guests/runtime/apic.hpp"

#include <cstddef>

#include "tests/guests/runtime/cpu.hpp"
#include "tests/guests/runtime/status.hpp"

extern "C" {
struct InterruptGate {
    std::uint16_t offset0;
    std::uint16_t selector;
    std::uint16_t flags;
    std::uint16_t offset1;
    std::uint32_t offset2;
    std::uint32_t reserved;
};
static_assert(sizeof(InterruptGate) == 16);
alignas(4096) InterruptGate interrupt_table[256];
extern const std::uint64_t exception_stubs;
extern const char trampoline_begin[];
extern const char trampoline_end[];
extern std::uint64_t starting_vcpu;
void undefined_entry();
void spurious_entry();
}

namespace tests::guests {

namespace {

constexpr std::uint64_t kLapic = 0xfee00000;
constexpr std::uint64_t kIoApic = 0xfec00000;
constexpr unsigned kId = 0x20, kTaskPriority = 0x80, kSpurious = 0xf0, kCommandLow = 0x300,
                   kCommandHigh = 0x310, kLvtTimer = 0x320, kLvtThermal = 0x330, kLvtPerformance = 0x340,
                   kLvtLint0 = 0x350, kLvtLint1 = 0x360, kLvtError = 0x370, kInitialCount = 0x380,
                   kDivide = 0x3e0;
constexpr unsigned kLocalVectors[] = {
    kLvtTimer, kLvtThermal, kLvtPerformance, kLvtLint0, kLvtLint1, kLvtError};
constexpr std::uint32_t kMasked = 1 << 16;
constexpr std::uint32_t kPeriodic = 1 << 17;
constexpr std::uint32_t kDeadline = 2 << 17;
constexpr std::uint32_t kDivideByOne = 0xb;
constexpr std::uint32_t kPending = 1 << 12;
constexpr std::uint32_t kInit = 0x4500;     // INIT, assert
constexpr std::uint32_t kStartUp = 0x4600;  // SIPI, assert
constexpr std::uint16_t kUserGate = 0xee00; // present, DPL 3, 64-bit interrupt gate

volatile std::uint32_t& lapic(unsigned offset) {
    return *reinterpret_cast<volatile std::uint32_t*>(kLapic + offset);
}

void write_io_apic(unsigned index, std::uint32_t value) {
    *reinterpret_cast<volatile std::uint32_t*>(kIoApic) = index;
    *reinterpret_cast<volatile std::uint32_t*>(kIoApic + 0x10) = value;
}

void send(std::uint32_t apic_id, std::uint32_t command) {
    while ((lapic(kCommandLow) & kPending) != 0)
        pause();
    lapic(kCommandHigh) = apic_id << 24;
    lapic(kCommandLow) = command;
}

void wait_us(std::uint64_t us) {
    const std::uint64_t end = read_tsc() + ticks_of_us(us);
    while (read_tsc() < end)
        pause();
}

void set_gate(unsigned vector, std::uint64_t address) {
    interrupt_table[vector] = {static_cast<std::uint16_t>(address), SELECTOR_CODE64, kUserGate,
        static_cast<std::uint16_t>(address >> 16), static_cast<std::uint32_t>(address >> 32), 0};
}

bool has_started(std::uint32_t index) {
    return (read_field(header().started) >> index & 1) != 0;
}

} // namespace

void set_interrupt(unsigned vector, InterruptEntry entry) {
    set_gate(vector, reinterpret_cast<std::uint64_t>(entry));
}

void initialize_interrupts() {
    for (unsigned vector = 0; vector < 32; ++vector)
        set_gate(vector, exception_stubs + 16 * vector);
    set_interrupt(6, undefined_entry);
    set_interrupt(VECTOR_SPURIOUS, spurious_entry);
}

void initialize_lapic() {
    lapic(kSpurious) = 0x100 | VECTOR_SPURIOUS;
    lapic(kTaskPriority) = 0;
    for (const unsigned vector : kLocalVectors)
        lapic(vector) = kMasked;
}

std::uint32_t lapic_id() {
    return lapic(kId) >> 24;
}

void send_ipi(std::uint32_t apic_id, unsigned vector) {
    send(apic_id, 0x4000 | vector);
}

void start_deadline_timer(unsigned vector, std::uint64_t deadline_tsc) {
    lapic(kLvtTimer) = kDeadline | vector;
    // The MMIO write must be done before the MSR write: Intel SDM volume 3, 11.5.4.1.
    asm volatile("mfence" : : : "memory");
    write_msr(MSR_TSC_DEADLINE, deadline_tsc);
}

void start_periodic_timer(unsigned vector, std::uint64_t period_ns) {
    std::uint64_t bus_khz = 1000000;
    if (cpuid(0x40000000).eax >= 0x40000010 && cpuid(0x40000010).ebx != 0) {
        bus_khz = cpuid(0x40000010).ebx;
    }
    lapic(kDivide) = kDivideByOne;
    lapic(kLvtTimer) = kPeriodic | vector;
    lapic(kInitialCount) = static_cast<std::uint32_t>(period_ns * bus_khz / 1000000);
}

void route_pin(unsigned pin, unsigned vector) {
    write_io_apic(0x11 + 2 * pin, 0); // destination: APIC id 0
    write_io_apic(0x10 + 2 * pin, vector);
}

void mask_pin(unsigned pin) {
    write_io_apic(0x10 + 2 * pin, kMasked);
}

void start_vcpu(std::uint32_t index) {
    auto* page = reinterpret_cast<char*>(LAYOUT_TRAMPOLINE);
    const auto bytes = static_cast<std::size_t>(trampoline_end - trampoline_begin);
    for (std::size_t i = 0; i < bytes; ++i)
        page[i] = trampoline_begin[i];
    write_field(starting_vcpu, index);

    constexpr std::uint64_t kAttempts = 5;
    for (std::uint64_t attempt = 0; attempt < kAttempts; ++attempt) {
        send(index, kInit);
        wait_us(10000);
        send(index, kStartUp | LAYOUT_TRAMPOLINE >> 12);
        // One SIPI is enough on a VM; a second one might find the vCPU in its main loop.
        Watchdog patience(1000000);
        while (!has_started(index)) {
            if (patience.expired(read_tsc())) break;
            pause();
        }
        if (has_started(index)) return;
    }
    report_error(ErrorCode::kVcpuNotStarted, index, kAttempts);
}

} // namespace tests::guests
