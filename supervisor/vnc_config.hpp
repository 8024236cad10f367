// Where a guest's screen is shown by VNC, as `vnc` in [qemu] says it. Pure.
#pragma once

#include <cstdint>
#include <string>

#include "handoff/base/result.hpp"

namespace liveupdate::supervisor {

// At a path, or at an address of the host.
struct VncConfig {
    std::string path;
    std::string host; // empty: every address
    uint16_t port = 0;
    std::string options; // of QEMU's -vnc, behind the address: "password-secret=s,share=ignore"
    bool operator==(const VncConfig&) const = default;
};

// Of "HOST:DISPLAY[,OPTION…]", where display N is port 5900 + N, or "unix:PATH[,OPTION…]". kInvalid with what
// to write instead.
Result<VncConfig> parse_vnc(const std::string& text);

// The address alone: "127.0.0.1:1" or "unix:/run/web1.vnc".
std::string to_string(const VncConfig& vnc);

} // namespace liveupdate::supervisor
