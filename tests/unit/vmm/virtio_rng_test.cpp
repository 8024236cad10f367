#include "vmm/devices/virtio/rng.hpp"

#include <algorithm>

#include "tests/unit/vmm/virtio_fixture.hpp"

namespace liveupdate::vmm::test {
namespace {

using namespace virtio;

struct Guest {
    GuestRam ram;
    FakeInterrupt interrupt;
    Rng device{{ram.memory(), interrupt}};
    Registers registers{device.transport()};
    DriverQueue queue{ram};

    void start() {
        REQUIRE(device.open());
        device.unhold();
        registers.agree(kRingFeatures);
        registers.set_up(0, queue);
        registers.drive();
    }
    void offer(std::vector<Desc> parts) {
        queue.chain(0, std::move(parts));
        queue.offer(0);
        registers.set(0x50, 0);
        REQUIRE(eventually([&] { return queue.used_index() == queue.next_available; }));
    }
    uint32_t filled() { return queue.used_element(static_cast<uint16_t>(queue.used_index() - 1))[1]; }
};

TEST_CASE("buffers come back full of bytes that differ each time") {
    Guest guest;
    guest.start();
    CHECK(guest.registers.get(0x08) == 4);
    std::array<uint64_t, 2> before{};
    for (int i = 0; i < 5; ++i) {
        guest.offer({{0x10000, 40, kDescWrite, 0}, {0x20000, 8, kDescWrite, 0}});
        CHECK(guest.filled() == 48);
        const std::array now{guest.ram.get<uint64_t>(0x10020), guest.ram.get<uint64_t>(0x20000)};
        CHECK(now[0] != before[0]);
        CHECK(now[1] != before[1]);
        before = now;
    }
    CHECK(guest.ram.get<uint64_t>(0x10028) == 0);
    CHECK(guest.interrupt.raised > 0);
}

TEST_CASE("a buffer of any size is filled in part, one that is not writable not at all") {
    Guest guest;
    guest.start();
    guest.offer({{0x10000, 0x80000, kDescWrite, 0}});
    CHECK(guest.filled() == 4096);
    CHECK(guest.ram.get<uint64_t>(0x11000) == 0);
    guest.offer({{0x10000, 100, 0, 0}});
    CHECK(guest.filled() == 0);
    guest.offer({{GuestRam::kSeam - 4, 8, kDescWrite, 0}});
    CHECK(guest.filled() == 8);
}

TEST_CASE("a buffer outside RAM stops the device, not the VMM") {
    Guest guest;
    guest.start();
    guest.queue.chain(0, {{GuestRam::kSize - 8, 16, kDescWrite, 0}});
    guest.queue.offer(0);
    guest.registers.set(0x50, 0);
    CHECK(eventually([&] { return (guest.registers.status() & 64) != 0; }));
}

} // namespace
} // namespace liveupdate::vmm::test
