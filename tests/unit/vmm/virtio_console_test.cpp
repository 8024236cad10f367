#include "vmm/devices/virtio/console.hpp"

#include <mutex>
#include <string>

#include "tests/unit/vmm/fakes.hpp"
#include "tests/unit/vmm/virtio_fixture.hpp"

namespace liveupdate::vmm::test {
namespace {

using namespace virtio;

constexpr uint64_t kReceiveArea = 0x20000;
constexpr uint64_t kSendArea = 0x80000;

// The worker looks at it while a test changes it.
struct BackEnd final : ConsoleBackend {
    std::atomic<ConsoleReader> who{ConsoleReader::kAttached};
    std::atomic<int> wakes{0};

    ConsoleReader reader() const override { return who; }
    void wake() override { ++wakes; }
};

// A console and its driver; `ram` may be another one's, whose guest has come here.
struct Port {
    explicit Port(GuestRam& guest_ram) : ram(guest_ram) {}

    GuestRam& ram;
    BackEnd back_end;
    FakeInterrupt interrupt;
    ConsolePort device{back_end, {ram.memory(), interrupt}};
    Registers registers{device.transport()};
    DriverQueue in{ram};
    DriverQueue out{ram, 16, 0x2000, 0x6100, 0x8200};

    void start() {
        REQUIRE(device.open());
        device.unhold();
        drive();
    }
    void drive() {
        registers.agree(kRingFeatures);
        registers.set_up(0, in);
        registers.set_up(1, out);
        registers.drive();
        REQUIRE(registers.status() == 15);
    }
    void offer_buffers(uint16_t count, uint32_t bytes) {
        for (uint16_t i = 0; i < count; ++i) {
            in.chain(i, {{kReceiveArea + i * 0x1000u, bytes, kDescWrite, 0}});
            in.offer(i);
        }
        registers.set(0x50, 0);
    }
    // Everything that came in, in the order of the used ring.
    std::string received() {
        std::string text;
        while (in.seen_used != in.used_index()) {
            const auto [head, bytes] = in.used_element(in.seen_used++);
            text.append(reinterpret_cast<const char*>(ram.at(kReceiveArea + head * 0x1000u)), bytes);
        }
        return text;
    }
    void send(const std::string& text) {
        std::copy(text.begin(), text.end(), ram.at(kSendArea));
        const auto half = static_cast<uint32_t>(text.size() / 2);
        out.chain(0,
            {{kSendArea, half, 0, 0}, {kSendArea + half, static_cast<uint32_t>(text.size()) - half, 0, 0}});
        out.offer(0);
        registers.set(0x50, 1);
    }
    bool all_sent() {
        return eventually([&] { return out.used_index() == out.next_available; });
    }
    // Until `bytes` bytes have come out.
    std::string output(size_t bytes) {
        std::string text;
        static_cast<void>(eventually([&] {
            text += take_output(device);
            return text.size() >= bytes;
        }));
        return text;
    }
};

std::string numbered(size_t bytes) {
    std::string text;
    for (int i = 0; text.size() < bytes; ++i)
        text += std::to_string(i) + "\n";
    text.resize(bytes);
    return text;
}

TEST_CASE("bytes go both ways, in order") {
    GuestRam ram;
    Port port(ram);
    port.start();
    CHECK(port.registers.get(0x08) == 3);
    for (int i = 0; i < 40; ++i) {
        port.send("line " + std::to_string(i) + "\n");
        REQUIRE(port.all_sent());
    }
    std::string expected;
    for (int i = 0; i < 40; ++i)
        expected += "line " + std::to_string(i) + "\n";
    CHECK(take_output(port.device) == expected);
    CHECK(port.back_end.wakes > 0);

    port.offer_buffers(4, 8);
    REQUIRE(port.device.receive(bytes_of("0123456789")) == 10);
    std::string typed;
    CHECK(eventually([&] { return (typed += port.received()).size() == 10; }));
    CHECK(typed == "0123456789");
    CHECK(port.interrupt.raised > 0);
}

TEST_CASE("input waits for a driver, as much as there is room for") {
    GuestRam ram;
    Port port(ram);
    const std::string typed = numbered(5000);
    REQUIRE(port.device.receive_space() == ConsolePort::kInputCapacity);
    CHECK(port.device.receive(bytes_of(typed)) == ConsolePort::kInputCapacity);
    CHECK(port.device.receive_space() == 0);
    CHECK(port.device.receive(bytes_of("more")) == 0);
    port.start();
    const int wakes = port.back_end.wakes;
    port.offer_buffers(16, 300);
    std::string got;
    CHECK(eventually([&] { return (got += port.received()).size() == ConsolePort::kInputCapacity; }));
    CHECK(got == typed.substr(0, ConsolePort::kInputCapacity));
    CHECK(eventually([&] { return port.back_end.wakes > wakes; })); // the loop may read on
}

TEST_CASE("a guest that writes more than is read waits, and nothing is lost") {
    GuestRam ram;
    Port port(ram);
    port.start();
    const std::string text = numbered(3 * ConsolePort::kOutputCapacity + 100);
    port.send(text);
    CHECK(port.output(text.size()) == text);
    CHECK(port.all_sent());
    CHECK(port.device.dropped_output() == 0);
}

TEST_CASE("with nobody to read, what finds no room is dropped and counted") {
    GuestRam ram;
    Port port(ram);
    port.start();
    SUBCASE("away from the beginning") {
        port.back_end.who = ConsoleReader::kAway;
        port.send(numbered(ConsolePort::kOutputCapacity + 100));
        CHECK(port.all_sent());
    }
    SUBCASE("gone while the guest waits") {
        port.send(numbered(ConsolePort::kOutputCapacity + 100));
        CHECK(eventually([&] {
            std::vector<uint8_t> all(ConsolePort::kOutputCapacity);
            return port.device.peek_output(all) == all.size();
        }));
        CHECK(port.out.used_index() == 0);
        port.back_end.who = ConsoleReader::kAway;
        port.device.reader_changed();
        CHECK(port.all_sent());
    }
    CHECK(port.device.dropped_output() == 100);
    CHECK(take_output(port.device) == numbered(ConsolePort::kOutputCapacity));
}

TEST_CASE("without a console output vanishes at once and is not counted") {
    GuestRam ram;
    Port port(ram);
    port.back_end.who = ConsoleReader::kNever;
    port.start();
    port.send(numbered(50000));
    CHECK(port.all_sent());
    CHECK(take_output(port.device).empty());
    CHECK(port.device.dropped_output() == 0);
}

TEST_CASE("a guest without a driver can write through the emergency register") {
    GuestRam ram;
    Port port(ram);
    CHECK((port.registers.get(0x10) & kConsoleEmergencyWrite) != 0);
    for (const char c : std::string("panic"))
        port.registers.set(0x108, static_cast<uint8_t>(c));
    port.registers.set(0x100, 'x'); // columns: read-only
    port.registers.set(0x104, 'x');
    CHECK(take_output(port.device) == "panic");
    CHECK(port.registers.get(0x108) == 0);
    for (size_t i = 0; i < ConsolePort::kOutputCapacity + 3; ++i)
        port.registers.set(0x108, 'y');
    CHECK(port.device.dropped_output() == 3);
}

// The driver writes one long buffer, of which a part is taken whenever the loop has read some; the guest goes
// from one VMM to the next all the while.
TEST_CASE("over updates no byte is lost, doubled or reordered, either way") {
    GuestRam ram;
    auto port = std::make_unique<Port>(ram);
    port->start();
    const std::string text = numbered(100'000);
    const std::string typed = numbered(3000);
    port->send(text);
    port->offer_buffers(16, 40);
    std::string written, got;
    size_t given = 0;
    for (int update = 0; update < 30; ++update) {
        written += take_output(port->device, 3001);
        const size_t more = std::min<size_t>(100, typed.size() - given);
        given += port->device.receive(bytes_of(typed.substr(given, more)));
        port->device.hold();
        REQUIRE(port->device.await_held(Deadline::never()));
        const auto state = port->device.save();
        REQUIRE(state);
        auto next = std::make_unique<Port>(ram);
        next->in.next_available = port->in.next_available;
        next->in.seen_used = port->in.seen_used;
        next->out.next_available = port->out.next_available;
        REQUIRE(next->device.open());
        REQUIRE(next->device.load(*state, ConsolePort::kStateVersion));
        port = std::move(next);
        port->device.unhold();
    }
    written += port->output(text.size() - written.size());
    CHECK(written == text);
    CHECK(port->all_sent());
    CHECK(given == typed.size());
    // A buffer comes back with what there was at that moment, so how many it takes is not known.
    const auto taken = [&] {
        got += port->received();
        return got.size() == typed.size() || port->in.seen_used == port->in.next_available;
    };
    for (int round = 0; round < 100 && got.size() < typed.size(); ++round) {
        REQUIRE(eventually(taken));
        if (got.size() < typed.size()) port->offer_buffers(16, 40);
    }
    CHECK(got == typed);
}

TEST_CASE("a reset in the middle of a buffer begins anew, and a broken ring stops the device only") {
    GuestRam ram;
    Port port(ram);
    port.start();
    port.send(numbered(ConsolePort::kOutputCapacity + 100));
    CHECK(eventually([&] {
        std::vector<uint8_t> all(ConsolePort::kOutputCapacity);
        return port.device.peek_output(all) == all.size();
    }));
    port.out.publish(0);
    port.drive();
    CHECK(take_output(port.device) == numbered(ConsolePort::kOutputCapacity));
    port.out.used = 0x8200;
    ram.put(port.out.used + 2, uint16_t{0});
    port.send("new");
    CHECK(port.output(3) == "new");

    port.out.chain(0, {{GuestRam::kSize - 8, 16, 0, 0}});
    port.out.offer(0);
    port.registers.set(0x50, 1);
    CHECK(eventually([&] { return (port.registers.status() & 64) != 0; }));
}

} // namespace
} // namespace liveupdate::vmm::test
