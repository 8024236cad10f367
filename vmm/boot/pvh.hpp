// Starts a kernel by the PVH protocol (Xen's docs/misc/pvh.pandoc, "x86/HVM direct boot ABI").
//
// What the loader puts into guest memory, beside what vmm/boot/e820.hpp tells:
//
//     0x06000   hvm_start_info, version 1 (xen/include/public/arch-x86/hvm/start_info.h)
//     0x06040   one hvm_modlist_entry, when there is an initrd
//     0x07000   the memory map, 24 bytes an entry
#pragma once

#include <cstdint>

#include "handoff/base/result.hpp"
#include "vmm/boot/elf.hpp"
#include "vmm/boot/initial_state.hpp"
#include "vmm/boot/kernel.hpp"
#include "vmm/boot/memory_map.hpp"

namespace liveupdate::vmm {

constexpr uint64_t kPvhStartInfo = 0x6000;
constexpr uint64_t kPvhModuleList = 0x6040;
constexpr uint64_t kPvhMemoryMap = 0x7000;

// The state the protocol asks for: 32-bit protected mode, flat segments, no paging, interrupts off.
InitialState pvh_initial_state(uint32_t entry);

// Loads `kernel`, which has a PVH entry and was read from files.kernel, and writes the boot structures. For
// load_kernel() only, which has checked that low memory is there.
Result<InitialState> load_pvh(const GuestMemory& memory, const ElfKernel& kernel, const KernelFiles& files);

} // namespace liveupdate::vmm
