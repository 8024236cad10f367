// Starts a kernel by the PVH protocol (Xen's docs/misc/pvh.pandoc, "x86/HVM direct boot ABI").
//
// What the loader puts into guest memory, beside the kernel's own segments:
//
//     0x06000   hvm_start_info, version 1 (xen/include/public/arch-x86/hvm/start_info.h)
//     0x06040   one hvm_modlist_entry, when there is an initrd
//     0x07000   the memory map, 24 bytes an entry
//     0x20000   the command line, at most 65535 bytes and a final 0
//     top       the initrd: whole pages at the end of the region of RAM that starts at 0
//
// [0x6000, 0x30000) must be free of kernel segments; a kernel may load anywhere else in RAM.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "handoff/base/result.hpp"
#include "vmm/boot/initial_state.hpp"
#include "vmm/boot/memory_map.hpp"

namespace liveupdate::vmm {

constexpr uint64_t kPvhStartInfo = 0x6000;
constexpr uint64_t kPvhModuleList = 0x6040;
constexpr uint64_t kPvhMemoryMap = 0x7000;
constexpr uint64_t kPvhCommandLine = 0x20000;
constexpr uint64_t kPvhStructuresEnd = 0x30000;
constexpr size_t kPvhMaxCommandLine = kPvhStructuresEnd - kPvhCommandLine - 1;

// As in the memory map: the types of ACPI's address ranges.
constexpr uint32_t kMapRam = 1;
constexpr uint32_t kMapReserved = 2;

struct MapEntry {
    uint64_t address;
    uint64_t size;
    uint32_t type;

    bool operator==(const MapEntry&) const = default;
};

// What a guest is told about its memory: RAM as in `regions`, without [0x9FC00, 0x100000), where a PC has its
// BIOS data and video memory; and the whole PCI hole as reserved. By rising address.
std::vector<MapEntry> pvh_memory_map(std::span<const MemoryRegion> regions);

// The state the protocol asks for: 32-bit protected mode, flat segments, no paging, interrupts off.
InitialState pvh_initial_state(uint32_t entry);

// Loads the kernel behind `kernel_fd` (borrowed) and writes the boot structures. Before the guest's first run
// only. `initrd` may be empty. On an error, which says what is wrong with the kernel, the command line or the
// initrd, guest memory holds nothing of use.
Result<InitialState> load_pvh(
    const GuestMemory& memory, int kernel_fd, std::string_view command_line, std::span<const uint8_t> initrd);

} // namespace liveupdate::vmm
