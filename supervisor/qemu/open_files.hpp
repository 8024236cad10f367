// Whether what a path leads to is what a QEMU has open: a destination opens the guest's disks and RAM by
// path.
#pragma once

#include "supervisor/qemu/qemu_process.hpp"

namespace liveupdate::supervisor::qemu {

// By device and inode. kRefused when the path leads nowhere; "/proc/self" in it is the process's own.
Result<bool> has_open(const QemuProcess& qemu, const std::string& path);

// kRefused when the path of a disk leads to another file than the one that the QEMU has open, or nowhere: a
// destination would give the guest another disk.
Result<void> check_disks(QemuProcess& source, Deadline deadline);

} // namespace liveupdate::supervisor::qemu
