// Whether two QEMUs have the same guest: what QEMU itself would find out only when the guest stands still,
// or not at all.
#pragma once

#include "supervisor/qemu/qemu_process.hpp"

namespace liveupdate::supervisor::qemu {

// kRefused, with what differs: RAM that is not shared, capabilities of migration that one lacks, machine
// type, number of vCPUs, and the devices under /machine by path and type.
Result<void> compare_guests(QemuProcess& source, QemuProcess& destination, Deadline deadline, int cancel_fd);

} // namespace liveupdate::supervisor::qemu
