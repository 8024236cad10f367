// Kicks: a disk's worker looks by itself for a while, and must not sleep on a request of which nobody tells
// it.
#include <string>

#include "tests/unit/vmm/blk_fixture.hpp"

namespace liveupdate::vmm::test {
namespace {

using namespace virtio;

// As the standard has it (2.7.13.4.1): offer, then look whether a kick is wanted.
bool wants_kick(Driver& driver, uint16_t before, uint64_t features) {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const DriverQueue& queue = driver.queue;
    if ((features & kFeatureEventIdx) == 0) return (driver.ram.get<uint16_t>(queue.used) & 1) == 0;
    const auto passed = static_cast<uint16_t>(queue.next_available - queue.kick_wanted_at() - 1);
    return passed < static_cast<uint16_t>(queue.next_available - before);
}

// One after the other, with pauses of up to twice as long as the worker looks before it sleeps.
unsigned read_one_by_one(Disk& disk, Driver& driver, uint64_t features, unsigned count) {
    unsigned kicks = 0;
    for (unsigned i = 0; i < count; ++i) {
        const uint16_t offered = driver.queue.next_available;
        const uint16_t used = driver.queue.used_index();
        driver.read(i % 8, 8 * (i % 64), 512);
        if (wants_kick(driver, offered, features)) {
            disk.kick();
            ++kicks;
        }
        const auto begin = std::chrono::steady_clock::now();
        while (driver.queue.used_index() == used) {
            if (std::chrono::steady_clock::now() - begin < std::chrono::seconds(20)) continue;
            FAIL("request ", i, " of ", count, " has not come back; ", kicks, " kicks");
        }
        const auto next = std::chrono::steady_clock::now() + std::chrono::nanoseconds(i % 6400 * 10);
        while (std::chrono::steady_clock::now() < next) {
        }
    }
    return kicks;
}

TEST_CASE("a driver that kicks only when it is asked to gets each request back") {
    for (const uint64_t features : {uint64_t{0}, kFeatureEventIdx}) {
        GuestRam ram;
        Driver driver{ram};
        Disk disk(ram, plain(), disk_file());
        disk.device->unhold();
        Registers registers{disk.device->transport()};
        registers.agree(kFeatureVersion1 | features | blk::kFeatureFlush);
        registers.set_up(0, driver.queue);
        registers.drive();
        REQUIRE(registers.status() == 15);
        const unsigned kicks = read_one_by_one(disk, driver, features, 20'000);
        MESSAGE("kicks for 20000 requests: ", kicks);
        CHECK(kicks > 0);
    }
}

TEST_CASE("a request that comes without a kick while the worker was held is served after it") {
    GuestRam ram;
    Driver driver{ram};
    Disk disk(ram, plain(), disk_file());
    disk.boot(driver);
    for (unsigned i = 0; i < 2'000; ++i) {
        const uint16_t used = driver.queue.used_index();
        driver.read(0, 0, 512);
        if (i % 2 == 0) disk.kick(); // perhaps the hold comes in the middle of that round
        disk.device->hold();
        disk.device->unhold();
        REQUIRE(eventually([&] { return driver.queue.used_index() != used; }));
    }
}

} // namespace
} // namespace liveupdate::vmm::test
