// A VM's file as QEMU's command line: what all QEMUs of the guest are started with, in the order in which
// devices are to be made; extra_args, which come last, are listening_plan.hpp's. Pure.
#pragma once

#include <string>
#include <vector>

#include "supervisor/config.hpp"

namespace liveupdate::supervisor::qemu {

inline constexpr const char* kRamId = "ram0"; // of the memory backend, which is also the RAM block's name
inline constexpr const char* kConsoleId = "console"; // of the character device; null until it is attached

// Of RAM in a file. kPrivate: what the guest writes stays with its QEMU, for good.
enum class RamMapping { kShared, kPrivate };

// `machine_type` is the one that the guest is pinned to; the VM file's options are put behind it. What goes
// to a descriptor is written with the numbers of descriptors.hpp.
std::vector<std::string> guest_arguments(
    const VmConfig& config, const std::string& machine_type, RamMapping mapping = RamMapping::kShared);

// Gives every generation id among the devices (`-device vmgenid`) this value, a UUID; false: there is none.
bool set_generation(std::vector<std::string>& arguments, const std::string& uuid);

// Whether RAM is in our file and mapped privately.
bool maps_ram_privately(const std::vector<std::string>& arguments);

// The id of the network of a [[net]], by its place in the file, and the argument that makes one of type user.
std::string netdev_id(size_t card);
std::string user_network(const std::string& id);

// The argument that makes the console's descriptor known to QEMU, as descriptor set 1.
std::string console_fds();

// Where each QEMU finds RAM that was passed to it.
std::string ram_path();

// The type alone of "q35,smm=off".
std::string machine_type_of(const std::string& machine);

} // namespace liveupdate::supervisor::qemu
