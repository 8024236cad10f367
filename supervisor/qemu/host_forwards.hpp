// Ports of this host that a QEMU forwards to its guest, as its monitor tells and takes them: `info usernet`
// and `hostfwd_add`, which QMP has no commands of its own for.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "supervisor/host_forward.hpp"
#include "supervisor/qemu/qemu_process.hpp"

namespace liveupdate::supervisor::qemu {

struct NetdevForward {
    std::string netdev; // id of the user-mode network
    HostForward forward;
    bool operator==(const NetdevForward&) const = default;
};

// Out of the text of `info usernet`, which has a line for each connection as well. Pure.
std::vector<NetdevForward> read_usernet(std::string_view text);

Result<std::vector<NetdevForward>> forwards_of(QemuProcess& qemu, Deadline deadline);

// kRefused, with QEMU's words and, when this process could not have the place either, why.
Result<void> add_forward(QemuProcess& qemu, const NetdevForward& wanted, Deadline deadline);

} // namespace liveupdate::supervisor::qemu
