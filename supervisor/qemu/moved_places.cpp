#include "supervisor/qemu/moved_places.hpp"

#include <algorithm>

#include "supervisor/qemu/command_line.hpp"
#include "supervisor/qemu/options.hpp"
#include "supervisor/qemu/vnc.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

using Arguments = std::vector<std::string>;

bool is_user_network(const std::string& argument) {
    return argument.starts_with("user,") || value_of(argument, "type") == "user";
}

Result<MovedPlaces> present(QemuProcess& qemu, const Arguments& guest_arguments, Deadline deadline) {
    MovedPlaces places;
    TRY_ASSIGN(places.screen, vnc_addresses(qemu, guest_arguments, deadline));
    // Nor need QEMU know of user networks at all.
    if (std::any_of(guest_arguments.begin(), guest_arguments.end(), is_user_network)) {
        TRY_ASSIGN(places.forwards, forwards_of(qemu, deadline));
    }
    return places;
}

// Of the VM file as it is now, as far as the guest was started with the devices for it.
MovedPlaces lacking(const VmConfig& config, const Arguments& guest_arguments, const MovedPlaces& there) {
    MovedPlaces places;
    if (there.screen.empty()) places.screen = wanted_vnc_addresses(config.qemu.vnc, guest_arguments);
    for (size_t i = 0; i < config.nets.size(); ++i) {
        const std::string netdev = netdev_id(i);
        if (std::find(guest_arguments.begin(), guest_arguments.end(), user_network(netdev)) ==
            guest_arguments.end())
            continue;
        for (const HostForward& wanted : config.nets[i].hostfwd) {
            const bool has = std::any_of(there.forwards.begin(), there.forwards.end(),
                [&](const NetdevForward& each) { return at_same_place(each.forward, wanted); });
            if (!has) places.forwards.push_back({netdev, wanted});
        }
    }
    return places;
}

} // namespace

Result<MovedPlaces> places_of(
    QemuProcess& qemu, const VmConfig& config, const Arguments& guest_arguments, Deadline deadline) {
    TRY_ASSIGN(MovedPlaces places, present(qemu, guest_arguments, deadline));
    MovedPlaces more = lacking(config, guest_arguments, places);
    if (places.screen.empty()) places.screen = std::move(more.screen);
    places.forwards.insert(places.forwards.end(), more.forwards.begin(), more.forwards.end());
    return places;
}

std::vector<Error> give_places(QemuProcess& qemu, const MovedPlaces& places, Deadline deadline) {
    std::vector<Error> missed;
    if (!places.screen.empty())
        if (auto shown = show_vnc(qemu, places.screen, deadline); !shown)
            missed.push_back(std::move(shown).error());
    for (const NetdevForward& each : places.forwards) {
        auto added = add_forward(qemu, each, deadline);
        if (added) continue;
        missed.push_back(std::move(added).error());
        const ErrorCode code = missed.back().code;
        if (code == ErrorCode::kTimeout || code == ErrorCode::kPeerGone) break; // nor would it take the next
    }
    return missed;
}

std::vector<Error> complete_places(
    QemuProcess& qemu, const VmConfig& config, const Arguments& guest_arguments, Deadline deadline) {
    auto there = present(qemu, guest_arguments, deadline);
    if (!there) return {std::move(there).error()};
    return give_places(qemu, lacking(config, guest_arguments, *there), deadline);
}

} // namespace liveupdate::supervisor::qemu
