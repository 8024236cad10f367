// Ethernet addresses of network cards, as people write them and as they follow from a VM's name.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "handoff/base/result.hpp"

namespace liveupdate::supervisor {

using MacAddress = std::array<uint8_t, 6>;

// "52:54:00:12:34:56": one card's, so neither a group's nor all zeros. kInvalid in words otherwise.
Result<MacAddress> parse_mac(std::string_view text);
std::string to_string(const MacAddress& mac);

// Of a VM's card number `index` when its file names none: locally administered, and the same for ever, so
// that a guest finds its card again. Two names give two addresses but for one chance in 2^46.
MacAddress default_mac(std::string_view vm, unsigned index);

} // namespace liveupdate::supervisor
