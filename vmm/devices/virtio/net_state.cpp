// Saving and loading of a network card.
#include <string>

#include "vmm/devices/state_message.hpp"
#include "vmm/devices/virtio/net.hpp"
#include "vmm/devices/virtio/net.pb.h"

namespace liveupdate::vmm::virtio {
namespace {

Error refused(const std::string& why) {
    return {ErrorCode::kRefused, why};
}

std::string bytes_of(std::span<const MacAddress> addresses) {
    std::string bytes;
    for (const MacAddress& mac : addresses)
        bytes.append(mac.begin(), mac.end());
    return bytes;
}

Result<MacList> list_of(const char* field, const std::string& bytes, bool too_many) {
    constexpr size_t kBytes = sizeof(MacAddress);
    if (bytes.size() % kBytes != 0 || bytes.size() > MacList::kMost * kBytes)
        return refused("field \"" + std::string(field) + "\" has " + std::to_string(bytes.size()) +
                       " bytes, which is no list of addresses");
    if (too_many && !bytes.empty())
        return refused("field \"" + std::string(field) + "\" lists addresses and is said to be too long");
    MacList list;
    list.too_many = too_many;
    for (size_t at = 0; at < bytes.size(); at += kBytes)
        std::copy_n(
            bytes.begin() + static_cast<std::ptrdiff_t>(at), kBytes, list.addresses.emplace_back().begin());
    return list;
}

} // namespace

Result<std::string> Net::save() const {
    state::VirtioNet message;
    transport().save(*message.mutable_transport());
    message.set_active_queue_pairs(control_.active_pairs);
    message.set_guest_offloads(control_.guest_offloads);
    message.set_mac(bytes_of(std::span(&control_.mac, 1)));
    message.set_promiscuous(control_.filter.promiscuous);
    message.set_all_multicast(control_.filter.all_multicast);
    message.set_unicast(bytes_of(control_.filter.unicast.addresses));
    message.set_multicast(bytes_of(control_.filter.multicast.addresses));
    message.set_too_many_unicast(control_.filter.unicast.too_many);
    message.set_too_many_multicast(control_.filter.multicast.too_many);
    return serialise_state(message);
}

Result<Net::Control> Net::check(const state::VirtioNet& in) const {
    const uint64_t agreed = in.transport().driver_features();
    TRY(check_at_most("active_queue_pairs", in.active_queue_pairs(), spec_.queue_pairs));
    if (in.active_queue_pairs() == 0) return refused("field \"active_queue_pairs\" is 0");
    if (in.active_queue_pairs() > 1 && (agreed & kNetMultiQueue) == 0)
        return refused("field \"active_queue_pairs\" is more than 1 without VIRTIO_NET_F_MQ");
    TRY(check_bits("guest_offloads", in.guest_offloads(), agreed & kNetGuestOffloads));
    Control control;
    TRY_ASSIGN(const MacList own, list_of("mac", in.mac(), false));
    if (own.addresses.size() != 1) return refused("field \"mac\" is not one address");
    control.mac = own.addresses[0];
    control.active_pairs = static_cast<uint16_t>(in.active_queue_pairs());
    control.guest_offloads = in.guest_offloads();
    control.filter.promiscuous = in.promiscuous();
    control.filter.all_multicast = in.all_multicast();
    TRY_ASSIGN(control.filter.unicast, list_of("unicast", in.unicast(), in.too_many_unicast()));
    TRY_ASSIGN(control.filter.multicast, list_of("multicast", in.multicast(), in.too_many_multicast()));
    return control;
}

Result<void> Net::load(std::string_view bytes, uint32_t version) {
    const auto schema = std::get<StateSchema>(state());
    state::VirtioNet message;
    TRY(parse_state(message, bytes, version, schema));
    const std::string context = "state of " + schema.section;
    auto queues = transport().check(message.transport());
    if (!queues) return std::move(queues).error().context(context);
    auto control = check(message);
    if (!control) return std::move(control).error().context(context);
    transport().apply(message.transport(), std::move(*queues));
    const std::lock_guard lock(mac_mutex_);
    control_ = std::move(*control);
    return {};
}

} // namespace liveupdate::vmm::virtio
