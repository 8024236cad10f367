// What a guest is told about its memory at boot, and where the loader puts what it leaves there.
//
//     0x06000   PVH: hvm_start_info and module list. Linux: the GDT
//     0x07000   PVH: the memory map. Linux: boot_params, the "zero page"
//     0x09000   Linux: page tables, 6 pages
//     0x20000   the command line, at most 65535 bytes and a final 0
//     0xE0000   ACPI tables and MP table (vmm/boot/platform_tables.hpp)
//     top       the initrd: whole pages at the end of the region of RAM that starts at 0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "vmm/boot/memory_map.hpp"

namespace liveupdate::vmm {

// [kBootStructures, kBootStructuresEnd) and [kLowRamEnd, kHighRamStart) must be free of kernel segments; a
// kernel may load anywhere else in RAM.
constexpr uint64_t kBootStructures = 0x6000;
constexpr uint64_t kBootCommandLine = 0x20000;
constexpr uint64_t kBootStructuresEnd = 0x30000;
constexpr size_t kMaxBootCommandLine = kBootStructuresEnd - kBootCommandLine - 1;

// Where a PC's RAM ends below its BIOS data and video memory, and where it goes on.
constexpr uint64_t kLowRamEnd = 0x9FC00;
constexpr uint64_t kHighRamStart = 0x100000;

// The types of ACPI's address ranges (ACPI 6.4, table 15.374); the BIOS's e820 and PVH use the same.
constexpr uint32_t kMapRam = 1;
constexpr uint32_t kMapReserved = 2;

struct MapEntry {
    uint64_t address;
    uint64_t size;
    uint32_t type;

    bool operator==(const MapEntry&) const = default;
};

// RAM as in `regions`, without [kLowRamEnd, kHighRamStart), which is reserved as a PC's BIOS area, firmware
// tables included; and the whole PCI hole as reserved. By rising address.
std::vector<MapEntry> boot_memory_map(std::span<const MemoryRegion> regions);

} // namespace liveupdate::vmm
