// The table of Intel's MultiProcessor Specification, version 1.4: how kernels without ACPI find their CPUs
// and the wiring of the I/O APIC.
#pragma once

#include <cstdint>
#include <vector>

#include "vmm/boot/platform.hpp"

namespace liveupdate::vmm {

// The floating pointer and, behind it, the configuration table, for `base` (16 bytes aligned) within
// [0xF0000, 0x100000), where an operating system looks.
std::vector<uint8_t> mp_table(const Platform& platform, uint32_t base);

} // namespace liveupdate::vmm
