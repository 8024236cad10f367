// Loads whatever kernel file a VM was given and says how its first vCPU starts. The one place that decides by
// which protocol:
//
//   ELF with XEN_ELFNOTE_PHYS32_ENTRY    PVH, vmm/boot/pvh.hpp
//   ELF64 without it                     Linux's 64-bit entry, vmm/boot/linux.hpp: an older vmlinux
//   "HdrS" at 0x202                      a bzImage by Linux's 64-bit entry, vmm/boot/linux.hpp
//
// The files are not trusted: every offset, size and address in them is checked before use.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "handoff/base/result.hpp"
#include "vmm/boot/e820.hpp"
#include "vmm/boot/elf.hpp"
#include "vmm/boot/initial_state.hpp"
#include "vmm/boot/memory_map.hpp"

namespace liveupdate::vmm {

// Borrowed for the call.
struct KernelFiles {
    int kernel = -1;
    int initrd = -1; // -1: none
    std::string_view command_line;
    uint64_t rsdp = 0; // guest physical address of ACPI's root pointer; 0: there is none
};

// Before the guest's first run only. On an error, which says what is wrong with which file and what to do,
// guest memory holds nothing of use.
Result<InitialState> load_kernel(const GuestMemory& memory, const KernelFiles& files);

// The parts that every protocol has. Used by the protocols' loaders only.

// What must stay free of the kernel: the boot structures, and what is no RAM to a PC below 1 MiB.
inline constexpr std::array<GuestRange, 2> kNotForKernels = {
    GuestRange{kBootStructures, kBootStructuresEnd - kBootStructures},
    GuestRange{kLowRamEnd, kHighRamStart - kLowRamEnd}};

std::vector<GuestRange> occupied_by(const ElfKernel& kernel);

// RAM starts at 0 and goes on beyond 1 MiB.
Result<void> check_low_memory(const GuestMemory& memory);

// At kBootCommandLine, with its final 0; `limit` is the kernel's own, without that 0.
Result<void> write_command_line(const GuestMemory& memory, std::string_view text, size_t limit);

struct InitrdPlace {
    uint64_t address = 0;
    uint64_t size = 0; // 0: there is none
};
// Reads the file behind `initrd_fd` (-1: none) into RAM, as high in the first region as it can and ends by
// `limit`, out of the way of a kernel that grows upwards.
Result<InitrdPlace> place_initrd(
    const GuestMemory& memory, int initrd_fd, const std::vector<GuestRange>& kernel, uint64_t limit);

template <typename T>
Result<void> put_struct(const GuestMemory& memory, uint64_t gpa, const T& value) {
    return memory.write(gpa, {reinterpret_cast<const uint8_t*>(&value), sizeof value});
}

} // namespace liveupdate::vmm
