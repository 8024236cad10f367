// The monitor of a QEMU that a supervisor has started: one end of a socketpair, which is nowhere in the file
// system. Its arguments tell the QEMU's number in the guest's life. Pure.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "handoff/baton.hpp"

namespace liveupdate::supervisor::qemu {

std::vector<std::string> monitor_arguments(handoff::Participant participant);

struct OwnMonitor {
    handoff::Participant participant = 0;
    size_t at = 0; // of its first argument, which what belongs to one process begins with
};
// Empty for one that no supervisor has started. `arguments` without the program's name.
std::optional<OwnMonitor> own_monitor(const std::vector<std::string>& arguments);

} // namespace liveupdate::supervisor::qemu
