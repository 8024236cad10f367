// Starts a Linux kernel by its own boot protocol (Documentation/x86/boot.rst, zero-page.rst), at the 64-bit
// entry, whether it comes as a bzImage or as a vmlinux.
//
// The 64-bit entry and not the 32-bit one: both kinds of file then start in one and the same state (a vmlinux
// has no other entry but PVH's), it is the way that every loader of today takes (EFI, kexec), and it saves
// the kernel the way through protected mode. The price is six pages of page tables here, and that 32-bit
// kernels and those before Linux 3.8 are refused.
//
// What the loader puts into guest memory, beside what vmm/boot/e820.hpp tells:
//
//     0x06000   a GDT: 0x10 is flat 64-bit code, 0x18 flat data
//     0x07000   boot_params, with the kernel's setup header in it
//     0x09000   page tables that map the first 4 GiB to themselves, in pages of 2 MiB
#pragma once

#include <cstdint>
#include <span>

#include "handoff/base/result.hpp"
#include "vmm/boot/elf.hpp"
#include "vmm/boot/initial_state.hpp"
#include "vmm/boot/kernel.hpp"
#include "vmm/boot/memory_map.hpp"

namespace liveupdate::vmm {

constexpr uint64_t kLinuxGdt = 0x6000;
constexpr uint64_t kLinuxBootParams = 0x7000;
constexpr uint64_t kLinuxPageTables = 0x9000;

// The setup header lies in the file where it lies in boot_params, and ends there at the latest.
constexpr size_t kSetupHeaderEnd = 0x290;

// `start` is the file's first kSetupHeaderEnd bytes, or all of it.
bool is_bzimage(std::span<const uint8_t> start);

// Both for load_kernel() only, which has checked that low memory is there.
Result<InitialState> load_bzimage(
    const GuestMemory& memory, std::span<const uint8_t> start, const KernelFiles& files);
// `kernel` has a 64-bit entry and was read from files.kernel.
Result<InitialState> load_vmlinux(
    const GuestMemory& memory, const ElfKernel& kernel, const KernelFiles& files);

// 64-bit mode with paging on, flat segments, interrupts off; RSI leads to boot_params.
InitialState linux_initial_state(uint64_t entry);

} // namespace liveupdate::vmm
