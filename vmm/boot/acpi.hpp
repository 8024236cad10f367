// ACPI tables (ACPI 6.4) for a machine without firmware: RSDP, XSDT, FADT, FACS, MADT and DSDT.
//
// ACPI's fixed hardware is described and not a hardware-reduced platform: power button, power-off and SCI
// then need no GPIO controller and no AML methods, every kernel since ACPI 1.0 knows them, and the PM timer
// and the PICs are there anyway. There is no SMI_CMD, so the machine is in ACPI mode from the beginning.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "vmm/boot/aml.hpp"
#include "vmm/boot/platform.hpp"

namespace liveupdate::vmm {

// All tables in one piece, for `base` (16 bytes aligned) and what follows; the RSDP comes first, so `base`
// below 1 MiB is where an operating system finds it.
std::vector<uint8_t> acpi_tables(const Platform& platform, uint64_t base);

// The AML of the DSDT, for tests.
aml::Bytes dsdt_body(const Platform& platform);

} // namespace liveupdate::vmm
