// A network card over taps of the host (virtio 1.2, section 5.1).
//
//     queue 2i       receiveq of pair i ◄── tap i      a packet is read once the driver has room for it
//     queue 2i + 1   transmitq of pair i ──► tap i     written at once, in the round of the kick
//     last           controlq; the third, when VIRTIO_NET_F_MQ was not agreed on
//
// Nothing is in flight between rounds: a packet is in a tap's queue or with the driver, so an update finds
// nothing to carry and loses nothing that the taps' queues can hold.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "vmm/devices/virtio/net_header.hpp"
#include "vmm/devices/virtio/receive_buffers.hpp"
#include "vmm/devices/virtio/receive_filter.hpp"
#include "vmm/devices/virtio/tap.hpp"
#include "vmm/devices/virtio/virtio_device.hpp"

namespace liveupdate::vmm::state {
class VirtioNet;
}

namespace liveupdate::vmm::virtio {

// Feature bits, 5.1.3.
inline constexpr uint64_t kNetChecksum = uint64_t{1} << 0;
inline constexpr uint64_t kNetGuestChecksum = uint64_t{1} << 1;
inline constexpr uint64_t kNetControlOffloads = uint64_t{1} << 2;
inline constexpr uint64_t kNetMtu = uint64_t{1} << 3;
inline constexpr uint64_t kNetMac = uint64_t{1} << 5;
inline constexpr uint64_t kNetGuestTso4 = uint64_t{1} << 7;
inline constexpr uint64_t kNetGuestTso6 = uint64_t{1} << 8;
inline constexpr uint64_t kNetGuestEcn = uint64_t{1} << 9;
inline constexpr uint64_t kNetGuestUfo = uint64_t{1} << 10;
inline constexpr uint64_t kNetHostTso4 = uint64_t{1} << 11;
inline constexpr uint64_t kNetHostTso6 = uint64_t{1} << 12;
inline constexpr uint64_t kNetHostEcn = uint64_t{1} << 13;
inline constexpr uint64_t kNetHostUfo = uint64_t{1} << 14;
inline constexpr uint64_t kNetMergeable = uint64_t{1} << 15;
inline constexpr uint64_t kNetStatus = uint64_t{1} << 16;
inline constexpr uint64_t kNetControlQueue = uint64_t{1} << 17;
inline constexpr uint64_t kNetControlReceive = uint64_t{1} << 18;
inline constexpr uint64_t kNetMultiQueue = uint64_t{1} << 22;
inline constexpr uint64_t kNetControlMac = uint64_t{1} << 23;
inline constexpr uint64_t kNetGuestUso4 = uint64_t{1} << 54;
inline constexpr uint64_t kNetGuestUso6 = uint64_t{1} << 55;
inline constexpr uint64_t kNetHostUso = uint64_t{1} << 56;

// What a driver may switch on and off while the card works.
inline constexpr uint64_t kNetGuestOffloads = kNetGuestChecksum | kNetGuestTso4 | kNetGuestTso6 |
                                              kNetGuestEcn | kNetGuestUfo | kNetGuestUso4 | kNetGuestUso6;

// Those that make packets longer than the MTU.
inline constexpr uint64_t kNetGuestSegmentation = kNetGuestOffloads & ~kNetGuestChecksum;

inline constexpr uint16_t kMaxQueuePairs = 8;
inline constexpr uint16_t kLeastMtu = 68; // 5.1.4.1

// The same for every VMM of a guest.
struct NetSpec {
    uint32_t instance = 0;
    MacAddress mac{};
    uint16_t queue_pairs = 1; // up to kMaxQueuePairs
    uint16_t mtu = 1500;
    unsigned tap_offloads = 0; // kTap...: what the taps can do for the guest
};

// Of the host's kernel, whatever its age: the rest is NetSpec's to say.
inline constexpr unsigned kEveryTapsOffloads = kTapChecksum | kTapTso4 | kTapTso6 | kTapEcn | kTapUfo;
inline constexpr unsigned kKnownTapOffloads = kEveryTapsOffloads | kTapUso4 | kTapUso6;

class Net final : public VirtioDevice {
public:
    static constexpr const char* kSection = "virtio-net";
    static constexpr uint32_t kStateVersion = 1;
    static constexpr uint32_t kOldestLoadable = 1;

    // One tap for each pair; none for a card that is never opened.
    Net(const NetSpec& spec, std::vector<Tap> taps, const Place& place);
    ~Net() override { shut(); }

    std::string_view name() const override { return name_; }
    StateDeclaration state() const override {
        return StateSchema{kSection, kStateVersion, kOldestLoadable, spec_.instance};
    }
    Result<std::string> save() const override;
    Result<void> load(std::string_view bytes, uint32_t version) override;
    std::vector<CarriedFd> carried() override { return {}; }
    bool at_rest() const override { return true; }

protected:
    // TransportUser.
    uint32_t device_id() const override { return 1; }
    uint64_t device_features() const override;
    std::vector<uint16_t> queue_limits() const override;
    void read_config(uint64_t offset, std::span<uint8_t> into) const override;
    void write_config(uint64_t offset, std::span<const uint8_t> from) override;
    void activated() override;
    void was_reset() override;
    void settle() override {}
    Result<void> open_back_end() override;

    // WorkerClient.
    void ready(uint64_t token) override;
    void look() override;
    void finish_round() override;
    Deadline wake_at() const override;

private:
    struct Pair {
        explicit Pair(Tap t) : tap(std::move(t)) {}
        Tap tap;
        ReceiveBuffers buffers; // empty between rounds
        bool receive_due = true;
        bool send_due = true;
        bool blocked = false; // the tap takes nothing at present
    };
    // What the driver has set.
    struct Control {
        uint16_t active_pairs = 1;
        uint64_t guest_offloads = 0;
        MacAddress mac{};
        ReceiveFilter filter;
    };

    size_t queue_count() const { return 2 * size_t{spec_.queue_pairs} + 1; }
    size_t control_index() const { return transport().has(kNetMultiQueue) ? queue_count() - 1 : 2; }
    ReceiveBuffers::Merge merge() const;
    size_t longest_received() const;

    void receive(Pair& pair, Queue& queue);
    void deliver(ReceiveBuffers& buffers, Queue& queue, size_t bytes) const;
    bool acceptable(NetHeader& header) const;
    void send(Pair& pair, Queue& queue);
    bool transmit(const Tap& tap);
    bool sendable(NetHeader& header, uint64_t packet_bytes) const;
    void broken(); // a ring

    void serve_control(Queue& queue);
    bool obey(std::vector<Segment>& command);
    bool set_receive_mode(uint8_t command, std::vector<Segment>& data);
    bool set_mac(uint8_t command, std::vector<Segment>& data);
    bool set_queue_pairs(uint8_t command, std::vector<Segment>& data);
    bool set_offloads(uint8_t command, std::vector<Segment>& data);
    void tell_taps();
    Result<Control> check(const state::VirtioNet& in) const;

    const NetSpec spec_;
    const std::string name_;
    std::vector<Pair> pairs_;
    // The worker's, but for the address, which vCPUs read.
    Control control_;
    mutable std::mutex mac_mutex_;
    bool control_due_ = true;
    bool taps_to_be_told_ = true;
    Chain chain_; // scratch
    std::vector<iovec> parts_;
};

} // namespace liveupdate::vmm::virtio
