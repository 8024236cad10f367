// QEMU's migration stream with this process at its other end: what a guest is beside its RAM, which lies in
// files (capability x-ignore-shared). The stream is QEMU's own; nothing looks into it.
#pragma once

#include <string>

#include "supervisor/qemu/qemu_process.hpp"

namespace liveupdate::supervisor::qemu {

// More is not taken: it goes into the state of a saved guest, which has a limit, too.
inline constexpr size_t kMostStream = size_t{48} << 20;

// Makes the source stop its guest and give all of it but RAM. After it the guest stands still and the source
// does not run it again by itself; on failure it may run, stand or be on its way to either: make_run()
// settles that. `cancel_fd` becomes readable: kAborted.
Result<std::string> take_stream(
    QemuProcess& source, const QemuFolder& folder, Deadline deadline, int cancel_fd);

// To a destination that was started with Role::kIncoming and has its capabilities set. After it the guest is
// loaded and does not run. Errors have QEMU's own words.
Result<void> give_stream(
    QemuProcess& destination, const QemuFolder& folder, const std::string& stream, Deadline deadline);

// The other form, for RAM that is private to QEMU: all of the guest, RAM at fixed places, in a file that QEMU
// writes and reads by itself (capability mapped-ram, 9.0 and later). Otherwise as the two above.
inline constexpr const char* kMappedRam = "mapped-ram";
Result<void> write_mapped(QemuProcess& source, const std::string& path, Deadline deadline, int cancel_fd);
Result<void> read_mapped(QemuProcess& destination, const std::string& path, Deadline deadline);
// A QEMU that does not know the capability refuses it.
Result<void> set_mapped_ram(QemuProcess& qemu, Deadline deadline, bool on);

} // namespace liveupdate::supervisor::qemu
