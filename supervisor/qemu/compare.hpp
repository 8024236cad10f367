// Whether two QEMUs have the same guest: what QEMU itself would find out only when the guest stands still,
// or not at all.
#pragma once

#include "supervisor/qemu/qemu_process.hpp"

namespace liveupdate::supervisor::qemu {

// kRefused, with what differs: the machine type, and the devices under /machine by path and type; between
// releases those alone that the command line has made.
Result<void> compare_guests(QemuProcess& source, QemuProcess& destination, Deadline deadline, int cancel_fd);

} // namespace liveupdate::supervisor::qemu
