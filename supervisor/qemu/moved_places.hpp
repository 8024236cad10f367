// Places of this host that only one QEMU can have, and that QEMU takes and gives up while it runs: where its
// screen is shown (vnc.hpp), and ports that are forwarded to its guest (host_forwards.hpp). Every QEMU of the
// guest is started without, and the one that runs the guest is given them.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "supervisor/config.hpp"
#include "supervisor/qemu/host_forwards.hpp"
#include "supervisor/qemu/qemu_process.hpp"

namespace liveupdate::supervisor::qemu {

struct MovedPlaces {
    nlohmann::json screen = nlohmann::json::array(); // as vnc_addresses()
    std::vector<NetdevForward> forwards;
};

// What the QEMU of a guest has, and beside that what the VM file says and it lacks: another one has had the
// place then.
Result<MovedPlaces> places_of(QemuProcess& qemu, const VmConfig& config,
    const std::vector<std::string>& guest_arguments, Deadline deadline);

// To a QEMU that has none. What cannot be had, one error each, which names the place; the rest it has.
std::vector<Error> give_places(QemuProcess& qemu, const MovedPlaces& places, Deadline deadline);

// Gives to the QEMU that runs the guest, or is about to, what the VM file says and it lacks. As
// give_places().
std::vector<Error> complete_places(QemuProcess& qemu, const VmConfig& config,
    const std::vector<std::string>& guest_arguments, Deadline deadline);

} // namespace liveupdate::supervisor::qemu
