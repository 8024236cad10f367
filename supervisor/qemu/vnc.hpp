// The guest's VNC server. Every QEMU of the guest has one, and only the one that runs the guest listens: its
// place is moved to it. Needs QEMU 7.1 (`display-update`).
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "supervisor/qemu/qemu_process.hpp"
#include "supervisor/vnc_config.hpp"

namespace liveupdate::supervisor::qemu {

// `-vnc` of a server that does not listen yet.
std::string vnc_option(const VncConfig& vnc);

// Where the server of a QEMU listens, as QMP's SocketAddress; empty: nowhere, or it was started without one.
Result<nlohmann::json> vnc_addresses(
    QemuProcess& qemu, const std::vector<std::string>& guest_arguments, Deadline deadline);
// Where it is to listen by the VM file as it is now; empty when the guest was started without VNC, or with
// other options: what was meant to be seen with a password is not shown without.
nlohmann::json wanted_vnc_addresses(
    const std::optional<VncConfig>& vnc, const std::vector<std::string>& guest_arguments);

// Lets the server listen at `addresses`, and nowhere else.
Result<void> show_vnc(QemuProcess& qemu, const nlohmann::json& addresses, Deadline deadline);

} // namespace liveupdate::supervisor::qemu
