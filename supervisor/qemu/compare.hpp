// Whether two QEMUs have the same guest: what QEMU itself would find out only when the guest stands still,
// or not at all.
#pragma once

#include <map>
#include <string>

#include "supervisor/qemu/qemu_process.hpp"

namespace liveupdate::supervisor::qemu {

// kRefused, with what differs: the machine type, and the devices under /machine by path and type; between
// releases those alone that the command line has made.
Result<void> compare_guests(QemuProcess& source, QemuProcess& destination, Deadline deadline, int cancel_fd);

// What one of them is called in errors, and what it is.
struct ComparedSide {
    std::string who;     // "the source"
    std::string version; // of QEMU
    // path -> type of what the command line and the board have made.
    std::map<std::string, std::string> devices;
};

Result<ComparedSide> side_of(QemuProcess& qemu, const std::string& who, Deadline deadline, int cancel_fd);
// The part of compare_guests() that needs no QEMU.
Result<void> compare_devices(ComparedSide source, ComparedSide destination);

} // namespace liveupdate::supervisor::qemu
