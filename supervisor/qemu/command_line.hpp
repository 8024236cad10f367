// A VM's file as QEMU's command line: what all QEMUs of the guest are started with, in the order in which
// devices are to be made. Pure.
#pragma once

#include <string>
#include <vector>

#include "supervisor/config.hpp"

namespace liveupdate::supervisor::qemu {

inline constexpr const char* kRamId = "ram0"; // of the memory backend, which is also the RAM block's name
inline constexpr const char* kConsoleId = "console"; // of the character device; null until it is attached

// `machine_type` is the one that the guest is pinned to; the VM file's options are put behind it. What goes
// to a descriptor is written with the numbers of qemu_process.hpp.
std::vector<std::string> guest_arguments(const VmConfig& config, const std::string& machine_type);

// The argument that makes the console's descriptor known to QEMU, as descriptor set 1.
std::string console_fds();

// Where each QEMU finds RAM that was passed to it.
std::string ram_path();

// The type alone of "q35,smm=off".
std::string machine_type_of(const std::string& machine);

} // namespace liveupdate::supervisor::qemu
