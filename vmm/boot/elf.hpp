// Loads an x86 ELF kernel into guest memory and finds its entry points.
//
// The file is not trusted: it may have been handed in by the VM's owner. Every offset, size and address is
// checked before use, and nothing is written to guest memory before all of them are known to be good.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "handoff/base/result.hpp"
#include "vmm/boot/memory_map.hpp"

namespace liveupdate::vmm {

// A PT_LOAD segment with memory of its own.
struct ElfSegment {
    uint64_t file_offset;
    uint64_t file_size;
    uint64_t gpa;  // p_paddr
    uint64_t size; // p_memsz >= file_size; the rest is zeroed
};

struct ElfKernel {
    std::vector<ElfSegment> segments;  // by rising gpa, no two overlap
    std::optional<uint32_t> pvh_entry; // guest physical, within a segment; from XEN_ELFNOTE_PHYS32_ENTRY
    std::optional<uint64_t> entry_64;  // e_entry of an ELF64 file, where it is an address within a segment
};

// Reads the headers and notes of an executable ELF64 x86-64 or ELF32 i386 file. Refused with a sentence:
// anything else, tables or segments outside the file, overlapping segments, and a PVH entry that lies in no
// segment. Whether the entries that were found are of use is for the caller to say.
Result<ElfKernel> read_elf_kernel(int fd);

// Copies the segments into RAM and zeroes their tails. Refused before anything is written: a segment that is
// not within one region of RAM, or that touches one of `reserved`.
Result<void> load_elf_kernel(
    int fd, const ElfKernel& kernel, const GuestMemory& memory, std::span<const GuestRange> reserved);

} // namespace liveupdate::vmm
