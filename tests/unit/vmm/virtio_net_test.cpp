#include "vmm/devices/virtio/net.hpp"

#include <numeric>

#include "tests/unit/vmm/tap_fixture.hpp"
#include "tests/unit/vmm/virtio_fixture.hpp"
#include "vmm/devices/virtio/net.pb.h"

namespace liveupdate::vmm::test {
namespace {

using namespace virtio;

constexpr MacAddress kOurs{0x52, 0x54, 0x00, 0x12, 0x34, 0x56};
constexpr MacAddress kOther{0x52, 0x54, 0x00, 0xaa, 0xbb, 0xcc};
constexpr MacAddress kGroup{0x01, 0x00, 0x5e, 0x00, 0x00, 0x05};
constexpr uint64_t kBare = kFeatureVersion1 | kNetMac;
constexpr uint64_t kUsual = kRingFeatures | kNetMac | kNetMergeable | kNetControlQueue | kNetControlReceive |
                            kNetControlMac | kNetControlOffloads | kNetChecksum | kNetGuestChecksum |
                            kNetHostTso4 | kNetGuestTso4 | kNetGuestTso6;

// A packet whose bytes tell its number.
Packet packet(size_t bytes, uint8_t number, const MacAddress& to = kOurs) {
    Packet p(bytes);
    std::iota(p.begin(), p.end(), number);
    std::copy(to.begin(), to.end(), p.begin());
    p[12] = 0x88; // a local experiment's EtherType
    p[13] = 0xb5;
    p[14] = number;
    return p;
}

NetSpec spec(uint16_t pairs = 1) {
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

TEST_CASE("packets go both ways, whole and in order") {
    const auto host = TapHost::make();
    if (!host) return;
    Card card(host->taps());
    card.start();
    card.offer_buffers(16, 0x1000);
    for (int i = 0; i < 200; ++i) {
        const Packet p = packet(60 + static_cast<size_t>(i) * 7, static_cast<uint8_t>(i));
        card.give(p);
        REQUIRE(host->receive() == p);
        host->send(p);
        NetHeader header{};
        REQUIRE(card.take(header) == p);
        REQUIRE(header.buffers == 1);
    }
    CHECK(card.all_sent());
    CHECK(card.interrupt.raised > 0);
}

TEST_CASE("a packet that is longer than a buffer lies in several, which come all at once") {
    const auto host = TapHost::make();
    if (!host) return;
    Card card(host->taps());
    card.start();
    card.offer_buffers(16, 256);
    for (int i = 0; i < 50; ++i) {
        const Packet p = packet(1400, static_cast<uint8_t>(i));
        host->send(p);
        NetHeader header{};
        REQUIRE(card.take(header) == p);
        REQUIRE(header.buffers == 6);
    }
}

TEST_CASE("a driver that does not merge gets each packet in one buffer, and loses what does not fit") {
    const auto host = TapHost::make();
    if (!host) return;
    Card card(host->taps());
    card.start(kBare);
    card.offer_buffers(4, 700);
    host->send(packet(689, 1)); // one byte too long
    host->send(packet(688, 2));
    NetHeader header{};
    CHECK(card.take(header) == packet(688, 2));
    CHECK(header.buffers == 1);
    host->send(packet(100, 3));
    CHECK(card.take() == packet(100, 3));
}

TEST_CASE("packets wait in the tap until the driver has room") {
    const auto host = TapHost::make();
    if (!host) return;
    Card card(host->taps());
    card.start();
    for (uint8_t i = 0; i < 100; ++i)
        host->send(packet(200, i));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    card.offer_buffers(16, 0x1000);
    for (uint8_t i = 0; i < 100; ++i)
        REQUIRE(card.take() == packet(200, i));
}

TEST_CASE("a driver that takes no packets longer than the MTU needs no more room than for one") {
    const auto host = TapHost::make();
    if (!host) return;
    Card card(host->taps());
    card.start(kBare | kNetMergeable | kNetGuestChecksum);
    card.offer_buffers(5, 256); // too few: 1532 bytes may come
    host->send(packet(1400, 1));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK(card.in.used_index() == 0);
    for (uint16_t i = 5; i < 9; ++i) {
        card.in.chain(i, {{Card::kReceiveArea + i * 0x1000u, 256, kDescWrite, 0}});
        card.in.offer(i);
        card.kick(0);
    }
    CHECK(card.take() == packet(1400, 1));
}

TEST_CASE("over updates no packet is lost, doubled or reordered") {
    const auto host = TapHost::make();
    if (!host) return;
    Card first(host->taps());
    first.start();
    first.offer_buffers(16, 0x1000);
    first.registers.set(0x30, 0);
    Card* running = &first;
    std::vector<std::unique_ptr<Card>> cards;
    uint8_t sent = 0;
    uint8_t taken = 0;
    for (int update = 0; update < 20; ++update) {
        for (int i = 0; i < 5; ++i)
            host->send(packet(300, sent++));
        running->device.hold();
        REQUIRE(running->device.await_held(Deadline::after(std::chrono::seconds(10))));
        for (int i = 0; i < 5; ++i)
            host->send(packet(300, sent++));
        first.give(packet(400, static_cast<uint8_t>(update))); // kicks the card that is on hold

        cards.push_back(std::make_unique<Card>(host->taps(), first));
        Card& next = *cards.back();
        REQUIRE(next.device.open());
        const auto saved = running->device.save();
        REQUIRE(saved);
        const auto loaded = next.device.load(*saved, 1);
        REQUIRE_MESSAGE(loaded, (loaded ? "" : loaded.error().message));
        CHECK(*next.device.save() == *saved);
        next.device.unhold();
        running = &next;
        CHECK(host->receive() == packet(400, static_cast<uint8_t>(update)));
        for (; taken != sent; ++taken) {
            REQUIRE(first.take() == packet(300, taken));
            running->kick(0); // what the driver does with its registers reaches whoever has the guest
        }
    }
    CHECK(host->receive(50).empty());
}

TEST_CASE("packets that no driver should send are dropped, and the next one is not") {
    const auto host = TapHost::make();
    if (!host) return;
    Card card(host->taps());
    card.start();
    const Packet good = packet(100, 1);
    card.give(good, {0, 77, 0, 100, 0, 0, 0});                             // no such segmentation
    card.give(good, {0, kGsoTcp6, 0, 100, 0, 0, 0});                       // was not agreed on
    card.give(good, {kNeedsChecksum, kGsoTcp4, 54, 0, 34, 16, 0});         // in segments of 0 bytes
    card.give(good, {kNeedsChecksum, kGsoTcp4 | kGsoEcn, 54, 9, 9, 9, 0}); // neither
    card.give(good, {kNeedsChecksum, 0, 0, 0, 99, 0, 0});                  // a sum beyond the packet's end
    card.give(good, {kNeedsChecksum, 0, 0, 0, 0xffff, 0xffff, 0});
    card.give(Packet(13, 1)); // shorter than an Ethernet header
    card.give({});
    REQUIRE(card.all_sent());
    card.out.chain(0, {{Card::kSendArea, 11, 0, 0}}); // not even a header
    card.out.offer(0);
    card.out.chain(2, {{Card::kSendArea, 0x20000, 0, 0}}); // longer than any packet
    card.out.offer(2);
    card.out.chain(4, {{Card::kSendArea, 0x1000, kDescWrite, 0}}); // nothing to read
    card.out.offer(4);
    card.kick(1);
    REQUIRE(card.all_sent());
    card.give(good, {kDataValid | 0xf0, 0, 0, 0, 0xffff, 0xffff, 0}); // what says nothing is passed over
    CHECK(host->receive() == good);
    card.give(packet(100, 2), {kNeedsChecksum, 0, 0, 0, 50, 48, 0});
    CHECK(host->receive().size() == 100);
    CHECK(host->receive(50).empty());
}

TEST_CASE("a broken ring stops the card, until it is reset") {
    const auto host = TapHost::make();
    if (!host) return;
    Card card(host->taps());
    card.start();
    SUBCASE("a receive buffer without room for the header") {
        card.offer_buffers(1, 11);
    }
    SUBCASE("a receive buffer outside RAM") {
        card.in.chain(0, {{GuestRam::kSize, 0x1000, kDescWrite, 0}});
        card.in.offer(0);
        card.kick(0);
    }
    SUBCASE("receive buffers, the second one of which is a loop") {
        card.in.chain(0, {{Card::kReceiveArea, 100, kDescWrite, 0}});
        card.in.describe(1, {Card::kReceiveArea, 100, kDescWrite | kDescNext, 1});
        card.in.offer(0);
        card.in.offer(1);
        card.kick(0);
    }
    SUBCASE("a packet in a loop") {
        card.out.describe(0, {Card::kSendArea, 100, kDescNext, 0});
        card.out.offer(0);
        card.kick(1);
    }
    SUBCASE("a command without room for the answer") {
        card.control.chain(0, {{Card::kControlArea, 3, 0, 0}});
        card.control.offer(0);
        card.kick(2);
    }
    REQUIRE(card.broken());
    host->send(packet(100, 9));
    for (DriverQueue* queue : {&card.in, &card.out, &card.control}) {
        for (uint64_t i = 0; i < 0x100; i += 8) {
            card.ram.put(queue->available + i % 0x80, uint64_t{0});
            card.ram.put(queue->used + i, uint64_t{0});
        }
        queue->next_available = queue->seen_used = 0;
    }
    card.drive(kUsual);
    card.offer_buffers(16, 0x1000);
    CHECK(card.take() == packet(100, 9));
    card.give(packet(100, 8));
    CHECK(host->receive() == packet(100, 8));
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

// A tap takes every packet unless a limit is set that the host's stack clears at once, so this is a socket.
TEST_CASE("packets that the host has no room for stay in the ring, and are sent once there is some") {
    auto ends = *fd::socketpair(SOCK_SEQPACKET);
    const int small = 1; // the kernel's least
    REQUIRE(::setsockopt(ends.first.get(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small) == 0);
    REQUIRE(::fcntl(ends.first.get(), F_SETFL, O_NONBLOCK) == 0);
    std::vector<Tap> taps;
    taps.emplace_back(std::move(ends.first));
    Card card(std::move(taps));
    card.start();
    for (uint8_t i = 0; i < 8; ++i)
        card.give(packet(1500, i));
    REQUIRE(eventually([&] { return card.out.used_index() > 0; }));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const uint16_t before = card.out.used_index();
    REQUIRE(before < 8);
    for (uint8_t i = 0; i < 8; ++i) {
        Packet p(4096);
        const ssize_t got = ::recv(ends.second.get(), p.data(), p.size(), 0);
        REQUIRE(got == 1512);
        p.resize(1512);
        p.erase(p.begin(), p.begin() + sizeof(NetHeader));
        REQUIRE(p == packet(1500, i));
    }
    CHECK(card.all_sent());
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
