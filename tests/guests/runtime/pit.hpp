#pragma once
/// 8254 PIT, channel 0.
#include <cstdint>

#include "tests/guests/runtime/cpu.hpp"

namespace tests::guests {

inline constexpr std::uint64_t kPitHz = 1193182;

/// Rate generator (mode 2), one interrupt every `divisor` / kPitHz seconds.
inline void start_pit(std::uint16_t divisor) {
    out8(0x43, 0x34);
    out8(0x40, static_cast<std::uint8_t>(divisor));
    out8(0x40, static_cast<std::uint8_t>(divisor >> 8));
}

} // namespace tests::guests
