// What stands before every packet, on its way through a queue and through a tap alike (virtio 1.2, 5.1.6).
#pragma once

#include <cstdint>

namespace liveupdate::vmm::virtio {

struct NetHeader {
    uint8_t flags;
    uint8_t gso_type;
    uint16_t header_length; // of the packet's headers: a hint
    uint16_t gso_size;
    uint16_t checksum_start; // from the packet's beginning
    uint16_t checksum_offset;
    uint16_t buffers; // that a received packet lies in
};
static_assert(sizeof(NetHeader) == 12);

// NetHeader::flags
inline constexpr uint8_t kNeedsChecksum = 1;
inline constexpr uint8_t kDataValid = 2;

// NetHeader::gso_type
inline constexpr uint8_t kGsoNone = 0;
inline constexpr uint8_t kGsoTcp4 = 1;
inline constexpr uint8_t kGsoUdp = 3;
inline constexpr uint8_t kGsoTcp6 = 4;
inline constexpr uint8_t kGsoUdpL4 = 5;
inline constexpr uint8_t kGsoEcn = 0x80; // beside one of TCP's

inline constexpr uint32_t kEthernetHeader = 14;
// What a packet may have beside its IP packet: our header, Ethernet's, and a VLAN tag.
inline constexpr uint32_t kAroundIp = sizeof(NetHeader) + kEthernetHeader + 4;
// The longest packet, to be segmented by whoever receives it.
inline constexpr uint32_t kLongestPacket = kAroundIp + 65535;

} // namespace liveupdate::vmm::virtio
