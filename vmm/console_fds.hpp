// The console that a manifest names, made from the fds that came with it.
#pragma once

#include <memory>
#include <string>

#include "handoff/channel.hpp"
#include "vmm/devices/console.hpp"

namespace liveupdate::vmm {

// `kind`: "none", "file", "pty" or "socket". Takes "console" (and "console-client") out of `fds`; a duplicate
// of "console" goes to `kept`, for a supervisor that comes later. The console is on hold.
Result<std::unique_ptr<Console>> take_console(
    const std::string& kind, handoff::NamedFds& fds, handoff::NamedFds& kept);

} // namespace liveupdate::vmm
