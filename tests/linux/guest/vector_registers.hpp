// Patterns in x87, SSE and AVX registers that stay there while time passes.
#pragma once

#include <cstdint>
#include <string>

namespace linux_guest {

// Loads the registers, waits for `spins` PAUSEs and compares: empty, or what was lost. AVX is used when the
// kernel offers it (a guest kernel may not, whatever CPUID tells).
std::string check_vector_registers(std::uint64_t spins);

// "avx" in /proc/cpuinfo.
bool kernel_offers_avx();

} // namespace linux_guest
