#pragma once
/// Single instructions, and the calls into ring 0. Everything here is for ring 3.
#include <cstdint>

#include "tests/guests/runtime/layout.h"

namespace tests::guests {

/// TSC, read after all earlier loads.
inline std::uint64_t read_tsc() {
    std::uint32_t low, high;
    asm volatile("lfence\n\trdtsc" : "=a"(low), "=d"(high) : : "memory");
    return std::uint64_t{high} << 32 | low;
}

inline void pause() {
    asm volatile("pause" : : : "memory");
}

inline void out8(std::uint16_t port, std::uint8_t value) {
    asm volatile("outb %0, %1" : : "a"(value), "d"(port) : "memory");
}

inline std::uint8_t in8(std::uint16_t port) {
    std::uint8_t value;
    asm volatile("inb %1, %0" : "=a"(value) : "d"(port) : "memory");
    return value;
}

inline void out32(std::uint16_t port, std::uint32_t value) {
    asm volatile("outl %0, %1" : : "a"(value), "d"(port) : "memory");
}

inline std::uint32_t in32(std::uint16_t port) {
    std::uint32_t value;
    asm volatile("inl %1, %0" : "=a"(value) : "d"(port) : "memory");
    return value;
}

/// UD2 is taken for a call by undefined_entry in interrupts.S.
inline std::uint64_t call_ring0(std::uint32_t operation, std::uint64_t target, std::uint64_t value) {
    std::uint64_t result = RING0_MAGIC;
    asm volatile("ud2" : "+a"(result), "+d"(value) : "D"(operation), "S"(target) : "rcx", "memory", "cc");
    return result;
}

struct CpuidResult {
    std::uint32_t eax, ebx, ecx, edx;
};

/// In ring 0: where a software KVM runs ring 3 on the bare processor and that has no CPUID faulting, CPUID in
/// ring 3 tells of the host.
inline CpuidResult cpuid(std::uint32_t leaf) {
    CpuidResult result{};
    call_ring0(RING0_CPUID, leaf, reinterpret_cast<std::uint64_t>(&result));
    return result;
}

inline void write_msr(std::uint32_t msr, std::uint64_t value) {
    call_ring0(RING0_WRMSR, msr, value);
}

inline std::uint64_t read_msr(std::uint32_t msr) {
    return call_ring0(RING0_RDMSR, msr, 0);
}

/// Waits for any interrupt. One that arrives just before is not waited for again: the caller
/// needs a timer that ticks.
inline void halt() {
    call_ring0(RING0_HLT, 0, 0);
}

} // namespace tests::guests
