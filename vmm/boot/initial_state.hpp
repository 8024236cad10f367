// The registers with which the first vCPU starts. A plain value without KVM's types, so that what a boot
// protocol asks for can be written down and tested by itself; vmm/kvm translates it.
#pragma once

#include <cstdint>

namespace liveupdate::vmm {

// As in the hidden part of a segment register (Intel SDM volume 3, "Segment descriptors").
struct SegmentState {
    uint64_t base = 0;
    uint32_t limit = 0xFFFF; // in bytes, whatever the granularity
    uint16_t selector = 0;
    uint8_t type = 0;
    bool code_or_data = true;   // S; false for a TSS or LDT
    bool present = true;        // P
    bool default_32 = false;    // D/B
    bool long_mode = false;     // L: 64-bit code
    bool page_granular = false; // G
};

struct TableState {
    uint64_t base = 0;
    uint16_t limit = 0xFFFF;
};

// Privilege level 0 throughout. Every register that is not named is 0, except RDX: a reset leaves the CPU's
// signature (CPUID leaf 1, EAX) there, which the CPU template knows and a boot protocol does not.
struct InitialState {
    uint64_t rip = 0;
    uint64_t rflags = 0x2; // bit 1 is always 1
    uint64_t rbx = 0;
    uint64_t rsi = 0;
    uint64_t cr0 = 0;
    uint64_t cr3 = 0;
    uint64_t cr4 = 0;
    uint64_t efer = 0;
    SegmentState cs;
    SegmentState data; // DS, ES, FS, GS and SS
    SegmentState tr;
    SegmentState ldt;
    TableState gdt;
    TableState idt;
};

} // namespace liveupdate::vmm
