#include "vmm/devices/virtio/net.hpp"

#include "tests/unit/vmm/net_fixture.hpp"

namespace liveupdate::vmm::test {
namespace {

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

} // namespace
} // namespace liveupdate::vmm::test
