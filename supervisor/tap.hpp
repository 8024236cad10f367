// Tap devices of the host, opened for a guest's network cards.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"

namespace liveupdate::supervisor {

// kVirtio: packets have virtio's headers of 12 bytes, and offloads can be switched on. kNone: bare packets.
enum class TapHeaders { kVirtio, kNone };

struct OpenTap {
    std::vector<UniqueFd> queues; // non-blocking
    uint32_t mtu = 0;
    uint32_t offloads = 0; // TUN_F_*: what the host can do for the guest; none is switched on
};

// An existing tap device, not in use by anybody else. Errors say in a sentence what to do.
Result<OpenTap> open_tap(const std::string& name, unsigned queues, TapHeaders headers);

} // namespace liveupdate::supervisor
