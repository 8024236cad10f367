// A network card and its driver, for tests.
#pragma once

#include <numeric>

#include "tests/unit/vmm/tap_fixture.hpp"
#include "tests/unit/vmm/virtio_fixture.hpp"
#include "vmm/devices/virtio/net.hpp"

namespace liveupdate::vmm::test {

using namespace virtio;

inline constexpr MacAddress kOurs{0x52, 0x54, 0x00, 0x12, 0x34, 0x56};
inline constexpr MacAddress kOther{0x52, 0x54, 0x00, 0xaa, 0xbb, 0xcc};
inline constexpr MacAddress kGroup{0x01, 0x00, 0x5e, 0x00, 0x00, 0x05};
inline constexpr uint64_t kBare = kFeatureVersion1 | kNetMac;
inline constexpr uint64_t kUsual = kRingFeatures | kNetMac | kNetMergeable | kNetControlQueue |
                                   kNetControlReceive | kNetControlMac | kNetControlOffloads | kNetChecksum |
                                   kNetGuestChecksum | kNetHostTso4 | kNetGuestTso4 | kNetGuestTso6;

// A packet whose bytes tell its number.
inline Packet packet(size_t bytes, uint8_t number, const MacAddress& to = kOurs) {
    Packet p(bytes);
    std::iota(p.begin(), p.end(), number);
    std::copy(to.begin(), to.end(), p.begin());
    p[12] = 0x88; // a local experiment's EtherType
    p[13] = 0xb5;
    p[14] = number;
    return p;
}

inline NetSpec spec(uint16_t pairs = 1) {
    return {0, kOurs, pairs, 1500, kEveryTapsOffloads};
}

// A card and its driver.
struct Card {
    static constexpr uint64_t kReceiveArea = 0x20000;
    static constexpr uint64_t kSendArea = 0x80000;
    static constexpr uint64_t kControlArea = 0xf0000;

    explicit Card(std::vector<Tap> taps, uint16_t pairs = 1)
        : device(spec(pairs), std::move(taps), {ram.memory(), interrupt}) {}
    // Another VMM's, over the same guest.
    Card(std::vector<Tap> taps, Card& other)
        : device(spec(), std::move(taps), {other.ram.memory(), interrupt}) {}

    GuestRam ram;
    FakeInterrupt interrupt;
    Net device;
    Registers registers{device.transport()};
    DriverQueue in{ram};
    DriverQueue out{ram, 16, 0x2000, 0x6100, 0x8200};
    DriverQueue control{ram, 16, 0x3000, 0x6200, 0x8400};
    std::vector<uint32_t> buffers; // bytes of receive buffer i, which lies at kReceiveArea + i * 0x1000
    uint8_t commands = 0;

    void start(uint64_t features = kUsual) {
        REQUIRE(device.open());
        device.unhold();
        drive(features);
    }
    void drive(uint64_t features) {
        registers.agree(features);
        registers.set_up(0, in);
        registers.set_up(1, out);
        if ((features & kNetControlQueue) != 0) registers.set_up(2, control);
        registers.drive();
        REQUIRE(registers.status() == 15);
    }
    void kick(uint32_t queue) { registers.set(0x50, queue); }

    void offer_buffers(uint16_t count, uint32_t bytes) {
        for (uint16_t i = 0; i < count; ++i) {
            in.chain(i, {{kReceiveArea + i * 0x1000u, bytes, kDescWrite, 0}});
            in.offer(i);
        }
        kick(0);
    }
    // Takes the next packet out of the receive queue, and offers its buffers again.
    Packet take(NetHeader& header) {
        if (!eventually([&] { return in.used_index() != in.seen_used; })) return {};
        Packet whole;
        uint16_t parts = 1;
        for (uint16_t i = 0; i < parts; ++i) {
            REQUIRE(in.seen_used != in.used_index()); // all of a packet comes at once
            const auto [head, bytes] = in.used_element(in.seen_used++);
            const uint8_t* from = ram.at(kReceiveArea + head * 0x1000u);
            whole.insert(whole.end(), from, from + bytes);
            if (i == 0) {
                REQUIRE(whole.size() > sizeof header);
                std::memcpy(&header, whole.data(), sizeof header);
                parts = header.buffers;
            }
            in.offer(static_cast<uint16_t>(head));
        }
        kick(0);
        whole.erase(whole.begin(), whole.begin() + sizeof header);
        return whole;
    }
    Packet take() {
        NetHeader header{};
        return take(header);
    }
    void give(const Packet& p, const NetHeader& header = {}, uint32_t queue = 1) {
        const uint16_t slot = out.next_available % 8;
        const uint64_t at = kSendArea + slot * 0x10000u;
        ram.put(at, header);
        std::copy(p.begin(), p.end(), ram.at(at + sizeof header));
        out.chain(static_cast<uint16_t>(2 * slot),
            {{at, sizeof header, 0, 0}, {at + sizeof header, static_cast<uint32_t>(p.size()), 0, 0}});
        out.offer(static_cast<uint16_t>(2 * slot));
        kick(queue);
    }
    bool all_sent() {
        return eventually([&] { return out.used_index() == out.next_available; });
    }
    // The answer to a command.
    int command(uint8_t group, uint8_t number, const std::vector<uint8_t>& data, uint32_t queue = 2) {
        ram.put(kControlArea, std::array<uint8_t, 2>{group, number});
        std::copy(data.begin(), data.end(), ram.at(kControlArea + 2));
        ram.put(kControlArea + 0x8000, uint8_t{0xee});
        control.chain(
            0, {{kControlArea, 2, 0, 0}, {kControlArea + 2, static_cast<uint32_t>(data.size()), 0, 0},
                   {kControlArea + 0x8000, 1, kDescWrite, 0}});
        control.offer(0);
        kick(queue);
        REQUIRE(eventually([&] { return control.used_index() == control.next_available; }));
        return ram.get<uint8_t>(kControlArea + 0x8000);
    }
    bool broken() {
        return eventually([&] { return (registers.status() & 64) != 0; });
    }
};

} // namespace liveupdate::vmm::test
