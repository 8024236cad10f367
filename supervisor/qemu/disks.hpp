// The files that a guest's disks are.
#pragma once

#include "supervisor/qemu/qemu_process.hpp"

namespace liveupdate::supervisor::qemu {

// kRefused when the path of a disk leads to another file than the one that the QEMU has open, or nowhere: a
// destination would give the guest another disk.
Result<void> check_disks(QemuProcess& source, Deadline deadline);

} // namespace liveupdate::supervisor::qemu
