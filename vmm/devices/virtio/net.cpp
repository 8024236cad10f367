#include "vmm/devices/virtio/net.hpp"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

namespace liveupdate::vmm::virtio {
namespace {

constexpr uint16_t kPacketQueueSize = 1024;
constexpr uint16_t kControlQueueSize = 64;
constexpr uint16_t kLinkUp = 1;
// Of one direction of one pair in one round; the others and the driver wait meanwhile.
constexpr int kPacketsPerRound = 256;
constexpr size_t kMostParts = 1024; // IOV_MAX

// What one offload is called by the tap, towards the guest, and towards the host.
struct Offload {
    unsigned tap;
    uint64_t guest;
    uint64_t host;
};
constexpr std::array<Offload, 7> kOffloads{{
    {kTapChecksum, kNetGuestChecksum, kNetChecksum},
    {kTapTso4, kNetGuestTso4, kNetHostTso4},
    {kTapTso6, kNetGuestTso6, kNetHostTso6},
    {kTapEcn, kNetGuestEcn, kNetHostEcn},
    {kTapUfo, kNetGuestUfo, kNetHostUfo},
    {kTapUso4, kNetGuestUso4, kNetHostUso},
    {kTapUso6, kNetGuestUso6, kNetHostUso},
}};

// The offloads that packets of one type need: one of `guest`'s, and `host`'s.
struct Segmentation {
    uint8_t gso_type;
    uint64_t guest;
    uint64_t host;
};
constexpr std::array<Segmentation, 5> kSegmentations{{
    {kGsoNone, 0, 0},
    {kGsoTcp4, kNetGuestTso4, kNetHostTso4},
    {kGsoTcp6, kNetGuestTso6, kNetHostTso6},
    {kGsoUdp, kNetGuestUfo, kNetHostUfo},
    {kGsoUdpL4, kNetGuestUso4 | kNetGuestUso6, kNetHostUso},
}};

const Segmentation* segmentation(const NetHeader& header) {
    const auto type = static_cast<uint8_t>(header.gso_type & ~kGsoEcn);
    const auto found = std::find_if(kSegmentations.begin(), kSegmentations.end(),
        [type](const Segmentation& s) { return s.gso_type == type; });
    return found == kSegmentations.end() ? nullptr : &*found;
}

// As the configuration space begins (5.1.4); little-endian, like this host.
struct Config {
    MacAddress mac;
    uint16_t status;
    uint16_t max_queue_pairs;
    uint16_t mtu;
};
static_assert(sizeof(Config) == 12);

} // namespace

Net::Net(const NetSpec& spec, std::vector<Tap> taps, const Place& place)
    : spec_(spec), name_("net" + std::to_string(spec.instance)) {
    for (Tap& tap : taps)
        pairs_.emplace_back(std::move(tap));
    control_.mac = spec_.mac;
    attach(place);
}

uint64_t Net::device_features() const {
    uint64_t features = kNetMtu | kNetMac | kNetMergeable | kNetStatus | kNetControlQueue |
                        kNetControlReceive | kNetControlMac | kNetControlOffloads;
    for (const Offload& offload : kOffloads)
        if ((spec_.tap_offloads & offload.tap) != 0) features |= offload.guest | offload.host;
    if (spec_.queue_pairs > 1) features |= kNetMultiQueue;
    return features;
}

std::vector<uint16_t> Net::queue_limits() const {
    std::vector<uint16_t> limits(queue_count(), kPacketQueueSize);
    limits.back() = kControlQueueSize;
    return limits;
}

void Net::read_config(uint64_t offset, std::span<uint8_t> into) const {
    Config config{{}, kLinkUp, spec_.queue_pairs, spec_.mtu};
    {
        const std::lock_guard lock(mac_mutex_);
        config.mac = control_.mac;
    }
    const auto bytes = std::bit_cast<std::array<uint8_t, sizeof config>>(config);
    for (size_t i = 0; i < into.size(); ++i)
        into[i] = offset + i < bytes.size() ? bytes[offset + i] : uint8_t{0};
}

void Net::write_config(uint64_t /*offset*/, std::span<const uint8_t> /*from*/) {
    // Read-only: the address is changed through the control queue.
}

void Net::activated() {
    control_.guest_offloads = transport().features() & kNetGuestOffloads;
}

void Net::was_reset() {
    const std::lock_guard lock(mac_mutex_);
    control_ = {};
    control_.mac = spec_.mac;
}

Result<void> Net::open_back_end() {
    for (size_t i = 0; i < pairs_.size(); ++i)
        // Edges only: packets that the driver has no room for stay where they are, and wake nobody.
        TRY(worker().watch_while_free(pairs_[i].tap.fd(), EPOLLIN | EPOLLOUT | EPOLLET, i));
    return {};
}

void Net::ready(uint64_t token) {
    if (token < kFirstQueueToken) {
        Pair& pair = pairs_[token];
        pair.receive_due = true;
        if (pair.blocked) pair.send_due = true;
        return;
    }
    const size_t index = token - kFirstQueueToken;
    transport().clear_kick(index);
    if (index == 2 || index == queue_count() - 1) control_due_ = true;
    if (index / 2 >= pairs_.size()) return;
    (index % 2 == 0 ? pairs_[index / 2].receive_due : pairs_[index / 2].send_due) = true;
}

void Net::look() {
    for (Pair& pair : pairs_)
        pair.receive_due = pair.send_due = true;
    control_due_ = taps_to_be_told_ = true;
}

void Net::finish_round() {
    if (std::exchange(taps_to_be_told_, false)) tell_taps();
    for (size_t i = 0; i < std::min<size_t>(control_.active_pairs, pairs_.size()); ++i) {
        Pair& pair = pairs_[i];
        Queue* const receive_queue = transport().queue(2 * i);
        if (std::exchange(pair.receive_due, false) && receive_queue) receive(pair, *receive_queue);
        Queue* const send_queue = transport().queue(2 * i + 1); // gone if the other one was broken
        if (std::exchange(pair.send_due, false) && send_queue) send(pair, *send_queue);
    }
    if (!control_due_) return;
    control_due_ = false;
    Queue* const control = transport().queue(control_index());
    if (control && transport().has(kNetControlQueue)) serve_control(*control);
}

Deadline Net::wake_at() const {
    bool due = control_due_;
    for (size_t i = 0; i < std::min<size_t>(control_.active_pairs, pairs_.size()); ++i)
        due |= pairs_[i].receive_due || pairs_[i].send_due;
    return due ? Deadline::after(std::chrono::nanoseconds(0)) : Deadline::never();
}

void Net::broken() {
    for (Pair& pair : pairs_)
        pair.buffers.forget();
    transport().fail();
}

ReceiveBuffers::Merge Net::merge() const {
    return transport().has(kNetMergeable) ? ReceiveBuffers::Merge::kAllowed : ReceiveBuffers::Merge::kNever;
}

size_t Net::longest_received() const {
    return (control_.guest_offloads & kNetGuestSegmentation) != 0 ? kLongestPacket : kAroundIp + spec_.mtu;
}

void Net::receive(Pair& pair, Queue& queue) {
    for (int packets = 0;; ++packets) {
        if (packets == kPacketsPerRound || worker().must_yield()) {
            pair.receive_due = true;
            break;
        }
        const auto room = pair.buffers.gather(queue, merge(), longest_received());
        if (!room) return broken();
        if (!*room) break; // the driver kicks when there is more
        const ssize_t got = pair.buffers.receive(pair.tap);
        if (got < 0) break; // nothing there, or the host has taken the tap away
        const auto bytes = static_cast<size_t>(got);
        if (bytes > sizeof(NetHeader) && pair.buffers.fits(bytes)) deliver(pair.buffers, queue, bytes);
    }
    pair.buffers.give_back(queue);
    transport().signal_used(queue);
}

void Net::deliver(ReceiveBuffers& buffers, Queue& queue, size_t bytes) const {
    std::array<uint8_t, sizeof(NetHeader) + sizeof(MacAddress)> front{};
    buffers.peek(front);
    NetHeader header{};
    MacAddress to{};
    std::memcpy(&header, front.data(), sizeof header);
    std::memcpy(&to, front.data() + sizeof header, sizeof to);
    if (!control_.filter.wants(to, control_.mac) || !acceptable(header)) return;
    header.buffers = buffers.count(bytes);
    buffers.poke(std::bit_cast<std::array<uint8_t, sizeof header>>(header));
    buffers.deliver(queue, bytes);
}

// A packet may have waited in the tap since offloads were switched off.
bool Net::acceptable(NetHeader& header) const {
    const uint64_t on = control_.guest_offloads;
    const Segmentation* const kind = segmentation(header);
    if (kind == nullptr || (kind->guest != 0 && (kind->guest & on) == 0)) return false;
    if ((on & kNetGuestChecksum) != 0) return true;
    const bool unfinished = (header.flags & kNeedsChecksum) != 0;
    header.flags = 0;
    return !unfinished;
}

void Net::send(Pair& pair, Queue& queue) {
    pair.blocked = false;
    for (int packets = 0;; ++packets) {
        if (packets == kPacketsPerRound || worker().must_yield()) {
            pair.send_due = true;
            break;
        }
        const auto popped = queue.pop(chain_);
        if (!popped) return broken();
        if (!*popped) {
            if (queue.expect_kick()) continue;
            break;
        }
        if (!transmit(pair.tap)) {
            queue.unpop(1);
            pair.blocked = true; // until the tap says that it has room again
            break;
        }
        queue.push(chain_.head, 0);
    }
    transport().signal_used(queue);
}

// The packet in chain_; false if the tap has no room for it at present. What nobody could send is dropped.
bool Net::transmit(const Tap& tap) {
    const uint64_t bytes = chain_.readable_bytes;
    if (bytes < sizeof(NetHeader) + kEthernetHeader || bytes > kLongestPacket) return true;
    NetHeader header{}; // of our own: the driver cannot change it any more once it is judged
    std::array<uint8_t, sizeof header> raw{};
    if (!take_front(chain_.readable, raw) || chain_.readable.size() >= kMostParts) return true;
    std::memcpy(&header, raw.data(), sizeof header);
    if (!sendable(header, bytes - sizeof header)) return true;
    parts_.assign(1, {&header, sizeof header});
    for (const Segment& segment : chain_.readable)
        parts_.push_back({segment.bytes.data(), segment.bytes.size()});
    return tap.send(parts_) >= 0 || errno != EAGAIN;
}

bool Net::sendable(NetHeader& header, uint64_t packet_bytes) const {
    const uint64_t agreed = transport().features();
    const Segmentation* const kind = segmentation(header);
    if (kind == nullptr || (kind->host & agreed) != kind->host) return false;
    if ((header.gso_type & kGsoEcn) != 0 && (agreed & kNetHostEcn) == 0) return false;
    if (kind->gso_type != kGsoNone && header.gso_size == 0) return false;
    header.flags &= kNeedsChecksum;
    if (header.flags == 0) return true;
    const uint64_t checksum_end = uint64_t{header.checksum_start} + header.checksum_offset + 2;
    return (agreed & kNetChecksum) != 0 && checksum_end <= packet_bytes;
}

void Net::tell_taps() {
    if (pairs_.empty()) return;
    unsigned offloads = 0;
    for (const Offload& offload : kOffloads)
        if ((control_.guest_offloads & offload.guest) != 0) offloads |= offload.tap;
    if ((offloads & kTapChecksum) == 0) offloads = 0;
    if ((offloads & (kTapTso4 | kTapTso6)) == 0) offloads &= ~kTapEcn;
    constexpr unsigned kBothUso = kTapUso4 | kTapUso6;
    if ((offloads & kBothUso) != kBothUso) offloads &= ~kBothUso;
    pairs_.front().tap.set_offloads(offloads);
    for (size_t i = 1; i < pairs_.size(); ++i)
        i < control_.active_pairs ? pairs_[i].tap.attach() : pairs_[i].tap.detach();
}

} // namespace liveupdate::vmm::virtio
