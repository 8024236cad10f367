// Which packets the driver wants to see (virtio 1.2, 5.1.6.5.1 and 5.1.6.5.2).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace liveupdate::vmm::virtio {

using MacAddress = std::array<uint8_t, 6>;

constexpr bool is_multicast(const MacAddress& mac) {
    return (mac[0] & 1) != 0;
}

// The addresses of one kind that a driver has listed. A longer list is not kept, and lets all through.
struct MacList {
    static constexpr size_t kMost = 64;
    std::vector<MacAddress> addresses;
    bool too_many = false;

    bool wants(const MacAddress& mac) const {
        return too_many || std::find(addresses.begin(), addresses.end(), mac) != addresses.end();
    }
    bool operator==(const MacList&) const = default;
};

struct ReceiveFilter {
    bool promiscuous = true; // until the driver says otherwise
    bool all_multicast = false;
    MacList unicast;
    MacList multicast;

    // `own` is the card's address.
    bool wants(const MacAddress& to, const MacAddress& own) const {
        constexpr MacAddress kBroadcast{0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
        if (promiscuous || to == own || to == kBroadcast) return true;
        if (is_multicast(to)) return all_multicast || multicast.wants(to);
        return unicast.wants(to);
    }
};

} // namespace liveupdate::vmm::virtio
