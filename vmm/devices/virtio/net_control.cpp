// The control queue of a network card (virtio 1.2, section 5.1.6.5).
#include <array>
#include <bit>
#include <optional>

#include "vmm/devices/virtio/net.hpp"

namespace liveupdate::vmm::virtio {
namespace {

constexpr uint8_t kOk = 0;
constexpr uint8_t kError = 1;
constexpr int kCommandsPerRound = 16; // some take the host's network lock
constexpr uint64_t kLongestCommand = 64 * 1024;

enum Class : uint8_t {
    kClassReceive = 0,
    kClassMac = 1,
    kClassMultiQueue = 4,
    kClassOffloads = 5,
};
constexpr uint8_t kPromiscuous = 0;
constexpr uint8_t kAllMulticast = 1;
constexpr uint8_t kSetMacTable = 0;
constexpr uint8_t kSetMac = 1;
constexpr uint8_t kSetQueuePairs = 0;
constexpr uint8_t kSetOffloads = 0;

template <typename T>
std::optional<T> take(std::vector<Segment>& from) {
    std::array<uint8_t, sizeof(T)> bytes{};
    if (!take_front(from, bytes)) return std::nullopt;
    return std::bit_cast<T>(bytes);
}

std::optional<MacList> take_list(std::vector<Segment>& from) {
    const auto count = take<uint32_t>(from);
    if (!count) return std::nullopt;
    MacList list;
    for (uint32_t i = 0; i < *count; ++i) {
        const auto mac = take<MacAddress>(from);
        if (!mac) return std::nullopt;
        if (list.addresses.size() < MacList::kMost)
            list.addresses.push_back(*mac);
        else
            list.too_many = true;
    }
    if (list.too_many) list.addresses.clear();
    return list;
}

} // namespace

void Net::serve_control(Queue& queue) {
    for (int commands = 0;; ++commands) {
        if (commands == kCommandsPerRound || worker().must_yield()) {
            control_due_ = true;
            break;
        }
        const auto popped = queue.pop(chain_);
        if (!popped) return broken();
        if (!*popped) {
            if (queue.expect_kick()) continue;
            break;
        }
        const bool short_enough = chain_.readable_bytes <= kLongestCommand;
        const std::array<uint8_t, 1> answer{short_enough && obey(chain_.readable) ? kOk : kError};
        if (write_front(chain_.writable, answer) != answer.size()) return broken();
        queue.push(chain_.head, uint32_t{answer.size()});
    }
    transport().signal_used(queue);
}

bool Net::obey(std::vector<Segment>& command) {
    const auto which = take<std::array<uint8_t, 2>>(command);
    if (!which) return false;
    const auto [group, number] = *which;
    switch (group) {
    case kClassReceive:
        return transport().has(kNetControlReceive) && set_receive_mode(number, command);
    case kClassMac:
        return set_mac(number, command);
    case kClassMultiQueue:
        return transport().has(kNetMultiQueue) && set_queue_pairs(number, command);
    case kClassOffloads:
        return transport().has(kNetControlOffloads) && set_offloads(number, command);
    default:
        return false;
    }
}

bool Net::set_receive_mode(uint8_t command, std::vector<Segment>& data) {
    const auto on = take<uint8_t>(data);
    if (!on || *on > 1) return false;
    if (command == kPromiscuous)
        control_.filter.promiscuous = *on == 1;
    else if (command == kAllMulticast)
        control_.filter.all_multicast = *on == 1;
    else
        return false;
    return true;
}

bool Net::set_mac(uint8_t command, std::vector<Segment>& data) {
    if (command == kSetMacTable && transport().has(kNetControlReceive)) {
        auto unicast = take_list(data);
        if (!unicast) return false;
        auto multicast = take_list(data);
        if (!multicast) return false;
        control_.filter.unicast = std::move(*unicast);
        control_.filter.multicast = std::move(*multicast);
        return true;
    }
    if (command != kSetMac || !transport().has(kNetControlMac)) return false;
    const auto mac = take<MacAddress>(data);
    if (!mac || is_multicast(*mac)) return false;
    const std::lock_guard lock(mac_mutex_);
    control_.mac = *mac;
    return true;
}

bool Net::set_queue_pairs(uint8_t command, std::vector<Segment>& data) {
    const auto pairs = take<uint16_t>(data);
    if (command != kSetQueuePairs || !pairs || *pairs == 0 || *pairs > spec_.queue_pairs) return false;
    control_.active_pairs = *pairs;
    look(); // what waits in queues that come into use
    tell_taps();
    return true;
}

bool Net::set_offloads(uint8_t command, std::vector<Segment>& data) {
    const auto wanted = take<uint64_t>(data);
    const uint64_t possible = transport().features() & kNetGuestOffloads;
    if (command != kSetOffloads || !wanted || (*wanted & ~possible) != 0) return false;
    control_.guest_offloads = *wanted;
    tell_taps();
    return true;
}

} // namespace liveupdate::vmm::virtio
