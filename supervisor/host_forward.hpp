// A port of this host that is forwarded to a guest on QEMU's user-mode network, as `hostfwd` in [[net]] says
// it. Pure.
#pragma once

#include <cstdint>
#include <string>

#include "handoff/base/result.hpp"

namespace liveupdate::supervisor {

enum class Transport { kTcp, kUdp };

struct HostForward {
    Transport transport = Transport::kTcp;
    std::string host; // an IPv4 address; empty: every address
    uint16_t host_port = 0;
    std::string guest; // an IPv4 address; empty: the one that the guest is given by DHCP
    uint16_t guest_port = 0;
    bool operator==(const HostForward&) const = default;
};

// Of QEMU's "PROTOCOL:[HOST]:PORT-[GUEST]:PORT". kInvalid with what to write instead.
Result<HostForward> parse_host_forward(const std::string& text);

// As QEMU takes it: "tcp:127.0.0.1:2222-:22".
std::string to_string(const HostForward& forward);

// Whether both would be at one port of one address, so that there can be but one of them.
bool at_same_place(const HostForward& one, const HostForward& other);

} // namespace liveupdate::supervisor
