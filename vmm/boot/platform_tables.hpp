// Puts the firmware's tables where a PC keeps them: ACPI's at 0xE0000, the MP table at 0xF0000, both within
// the BIOS area, which the boot memory map tells as reserved.
#pragma once

#include <cstdint>

#include "handoff/base/result.hpp"
#include "vmm/boot/memory_map.hpp"
#include "vmm/boot/platform.hpp"

namespace liveupdate::vmm {

constexpr uint64_t kAcpiTables = 0xE0000;
// A page for the generation id: fixed for ever, a guest is told once, at its boot.
constexpr uint64_t kGenerationIdGpa = 0xEF000;
constexpr uint64_t kMpTable = 0xF0000;

// Before the guest's first run only; RAM goes beyond 1 MiB. The value is the RSDP's address.
Result<uint64_t> write_platform_tables(const GuestMemory& memory, const Platform& platform);

} // namespace liveupdate::vmm
