// What a driver sets and reads of a network card beside its packets.
#include "vmm/devices/virtio/net.hpp"

#include "tests/unit/vmm/net_fixture.hpp"
#include "vmm/devices/virtio/net.pb.h"

namespace liveupdate::vmm::test {
namespace {

std::vector<uint8_t> mac_table(const std::vector<MacAddress>& unicast, uint32_t multicast) {
    std::vector<uint8_t> table{static_cast<uint8_t>(unicast.size()), 0, 0, 0};
    for (const MacAddress& mac : unicast)
        table.insert(table.end(), mac.begin(), mac.end());
    table.insert(table.end(), {static_cast<uint8_t>(multicast), 0, 0, 0});
    for (uint32_t i = 0; i < multicast; ++i)
        table.insert(table.end(), kGroup.begin(), kGroup.end());
    return table;
}

TEST_CASE("a card says its address, that the link is up, its pairs of queues and the host's MTU") {
    GuestRam ram;
    FakeInterrupt interrupt;
    NetSpec three = spec(3);
    three.mtu = 1450;
    Net device(three, {}, {ram.memory(), interrupt});
    Registers registers{device.transport()};
    CHECK(registers.get(0x08) == 1);
    for (uint64_t i = 0; i < 6; ++i)
        CHECK(device.transport().read(0x100 + i, 1) == kOurs[i]);
    CHECK(device.transport().read(0x106, 2) == 1);
    CHECK(device.transport().read(0x108, 2) == 3);
    CHECK(device.transport().read(0x10a, 2) == 1450);
    CHECK(device.transport().read(0x10c, 4) == 0);
    CHECK(device.transport().queue_count() == 7);
    CHECK((registers.get(0x10) & kNetMultiQueue) != 0);
    Net single(spec(), {}, {ram.memory(), interrupt});
    CHECK((Registers{single.transport()}.get(0x10) & kNetMultiQueue) == 0);
}

TEST_CASE("the driver chooses what it receives") {
    const auto host = TapHost::make();
    if (!host) return;
    Card card(host->taps());
    card.start();
    card.offer_buffers(16, 0x1000);
    const MacAddress broadcast{0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    // Which of these arrive, by their numbers; the last always does.
    const auto arrive = [&] {
        host->send(packet(100, 1, kOther));
        host->send(packet(100, 2, kGroup));
        host->send(packet(100, 3, kOurs));
        host->send(packet(100, 4, broadcast));
        std::vector<int> numbers;
        while (numbers.empty() || numbers.back() != 4)
            numbers.push_back(card.take().at(14));
        return numbers;
    };
    using Numbers = std::vector<int>;
    CHECK(arrive() == Numbers{1, 2, 3, 4}); // all, until it says something
    CHECK(card.command(0, 0, {0}) == 0);
    CHECK(arrive() == Numbers{3, 4});
    CHECK(card.command(0, 1, {1}) == 0);
    CHECK(arrive() == Numbers{2, 3, 4});
    CHECK(card.command(0, 1, {0}) == 0);
    CHECK(card.command(1, 0, mac_table({kOther}, 0)) == 0);
    CHECK(arrive() == Numbers{1, 3, 4});
    CHECK(card.command(1, 0, mac_table({}, 1)) == 0);
    CHECK(arrive() == Numbers{2, 3, 4});
    CHECK(card.command(1, 0, mac_table({}, 65)) == 0); // more than are kept
    CHECK(arrive() == Numbers{2, 3, 4});
    CHECK(card.command(1, 0, mac_table({}, 0)) == 0);
    CHECK(card.command(1, 1, {kOther.begin(), kOther.end()}) == 0);
    CHECK(arrive() == Numbers{1, 4});
    CHECK(card.device.transport().read(0x105, 1) == 0xcc);
    CHECK(card.command(0, 0, {1}) == 0);
    CHECK(arrive() == Numbers{1, 2, 3, 4});
}

TEST_CASE("commands that make no sense are answered so, and change nothing") {
    const auto host = TapHost::make();
    if (!host) return;
    Card card(host->taps());
    card.start();
    card.device.hold();
    REQUIRE(card.device.await_held(Deadline::never()));
    state::VirtioNet before;
    REQUIRE(before.ParseFromString(*card.device.save()));
    card.device.unhold();
    const std::vector<std::tuple<uint8_t, uint8_t, std::vector<uint8_t>>> all{
        {0, 0, {}}, {0, 0, {2}}, {0, 9, {1}},                                              // receive mode
        {1, 0, {1, 0, 0, 0, 1, 2, 3}}, {1, 0, {255, 255, 255, 255}}, {1, 0, {0, 0, 0, 0}}, // tables
        {1, 1, {kGroup.begin(), kGroup.end()}}, {1, 1, {1, 2}}, {1, 7, {}},                // addresses
        {4, 0, {1, 0}},                                      // several queues were not agreed on
        {5, 0, {0, 0}}, {5, 0, {0, 4, 0, 0, 0, 0, 0, 0}},    // offloads, UFO was not agreed on
        {2, 0, {1}}, {200, 0, std::vector<uint8_t>(0x7000)}, // nobody knows
    };
    for (const auto& [group, number, data] : all) {
        CAPTURE(int{group});
        CAPTURE(int{number});
        CHECK(card.command(group, number, data) == 1);
    }
    card.device.hold();
    REQUIRE(card.device.await_held(Deadline::never()));
    state::VirtioNet after;
    REQUIRE(after.ParseFromString(*card.device.save()));
    after.clear_transport();
    before.clear_transport();
    CHECK(after.DebugString() == before.DebugString());
}

TEST_CASE("the tap has the offloads that the driver took, also with the next VMM") {
    const auto host = TapHost::make();
    if (!host) return;
    Card card(host->taps());
    const auto settles = [&](bool leaves) {
        return eventually([&] { return host->leaves_tcp_segmentation() == leaves; });
    };
    card.start(kBare);
    CHECK(settles(false));
    card.drive(kUsual);
    CHECK(settles(true));
    CHECK(card.command(5, 0, {2, 0, 0, 0, 0, 0, 0, 0}) == 0); // checksums only
    CHECK_FALSE(host->leaves_tcp_segmentation());
    CHECK(card.command(5, 0, {0x82, 1, 0, 0, 0, 0, 0, 0}) == 0);
    CHECK(host->leaves_tcp_segmentation());

    card.device.hold();
    REQUIRE(card.device.await_held(Deadline::never()));
    Card next(host->taps(), card);
    REQUIRE(::ioctl(host->queue(0), TUNSETOFFLOAD, 0ul) == 0);
    REQUIRE(next.device.open());
    REQUIRE(next.device.load(*card.device.save(), 1));
    CHECK_FALSE(host->leaves_tcp_segmentation()); // preparing changes nothing
    next.device.unhold();
    CHECK(settles(true));
    next.registers.set(0x70, 0);
    CHECK(settles(false));
}

TEST_CASE("only the pairs of queues that the driver uses are attached to the host's device") {
    const auto host = TapHost::make(3);
    if (!host) return;
    Card card(host->taps(), 3);
    REQUIRE(card.device.open());
    card.device.unhold();
    REQUIRE(eventually([&] { return !host->attached(1) && !host->attached(2); }));
    CHECK(host->attached(0));
    DriverQueue& control = card.control;
    card.registers.agree(kUsual | kNetMultiQueue);
    card.registers.set_up(0, card.in);
    card.registers.set_up(3, card.out); // the second pair's
    card.registers.set_up(6, control);
    card.registers.drive();
    card.offer_buffers(16, 0x1000);
    for (uint8_t i = 0; i < 50; ++i) { // whatever the host's hash says
        Packet p = packet(100, i);
        host->send(p);
        REQUIRE(card.take() == p);
    }
    card.give(packet(100, 1), {}, 3); // a queue that is not in use yet
    CHECK(host->receive(50).empty());
    CHECK(card.command(4, 0, {4, 0}, 6) == 1);
    CHECK(card.command(4, 0, {0, 0}, 6) == 1);
    CHECK(card.command(4, 0, {2, 0}, 6) == 0);
    CHECK(host->attached(1));
    CHECK_FALSE(host->attached(2));
    CHECK(host->receive() == packet(100, 1));
    card.give(packet(100, 2), {}, 3);
    CHECK(host->receive() == packet(100, 2));
    card.registers.set(0x70, 0);
    CHECK(eventually([&] { return !host->attached(1); }));
}

TEST_CASE("a descriptor that is no tap with headers is refused") {
    auto file = fd::open("/dev/null", O_RDWR);
    REQUIRE(file);
    const auto tap = Tap::adopt(std::move(*file));
    REQUIRE_FALSE(tap);
    CHECK(tap.error().message.find("no network device") != std::string::npos);
}

TEST_CASE("a card's state that cannot be is not loaded") {
    GuestRam ram;
    FakeInterrupt interrupt;
    Net device(spec(2), {}, {ram.memory(), interrupt});
    state::VirtioNet good;
    REQUIRE(good.ParseFromString(*device.save()));
    good.mutable_transport()->set_status(11);
    good.mutable_transport()->set_driver_features(kUsual | kNetMultiQueue);
    REQUIRE(device.load(good.SerializeAsString(), 1));
    const std::vector<std::pair<std::function<void(state::VirtioNet&)>, const char*>> all{
        {[](auto& s) { s.set_active_queue_pairs(3); }, "active_queue_pairs"},
        {[](auto& s) { s.set_active_queue_pairs(0); }, "active_queue_pairs"},
        {[](auto& s) {
             s.set_active_queue_pairs(2);
             s.mutable_transport()->set_driver_features(kUsual);
         },
            "VIRTIO_NET_F_MQ"},
        {[](auto& s) { s.set_guest_offloads(kNetGuestUfo); }, "guest_offloads"},
        {[](auto& s) { s.set_mac("12345"); }, "mac"},
        {[](auto& s) { s.set_mac("123456123456"); }, "mac"},
        {[](auto& s) { s.set_unicast("1234567"); }, "unicast"},
        {[](auto& s) { s.set_multicast(std::string(65 * 6, 'x')); }, "multicast"},
        {[](auto& s) {
             s.set_unicast("123456");
             s.set_too_many_unicast(true);
         },
            "unicast"},
    };
    for (const auto& [change, word] : all) {
        auto bad = good;
        change(bad);
        const auto loaded = device.load(bad.SerializeAsString(), 1);
        CAPTURE(word);
        REQUIRE_FALSE(loaded);
        CHECK(loaded.error().message.find(word) != std::string::npos);
    }
}

} // namespace
} // namespace liveupdate::vmm::test
