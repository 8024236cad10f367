#include "vmm/devices/virtio/queue.hpp"

#include <random>

#include "tests/unit/vmm/virtio_fixture.hpp"

namespace liveupdate::vmm::test {
namespace {

using virtio::Chain;
using virtio::Queue;

constexpr uint64_t kAll = virtio::kRingFeatures;

Queue open(GuestRam& ram, const DriverQueue& driver, uint64_t features = kAll) {
    auto queue = Queue::open(ram.memory(), driver.layout(), features, {});
    REQUIRE(queue);
    return std::move(*queue);
}

std::string why(const Result<bool>& popped) {
    return popped ? "taken" : popped.error().message;
}

TEST_CASE("a queue gives what the driver offers, in order, and gives it back") {
    GuestRam ram;
    DriverQueue driver{ram};
    Queue queue = open(ram, driver);
    Chain chain;
    REQUIRE(queue.pop(chain));
    CHECK_FALSE(*queue.pop(chain));

    driver.chain(3, {{0x10000, 16, 0, 0}, {0x11000, 512, kDescWrite, 0}, {0x12000, 1, kDescWrite, 0}});
    driver.chain(9, {{0x13000, 8, 0, 0}});
    driver.offer(9);
    driver.offer(3);
    REQUIRE(*queue.pop(chain));
    CHECK(chain.head == 9);
    CHECK(chain.writable.empty());
    REQUIRE(*queue.pop(chain));
    CHECK(chain.head == 3);
    CHECK(chain.readable_bytes == 16);
    CHECK(chain.writable_bytes == 513);
    REQUIRE(chain.writable.size() == 2);
    CHECK(chain.writable[0].gpa == 0x11000);
    CHECK(chain.writable[0].bytes.data() == ram.at(0x11000));

    queue.push(3, 513);
    queue.push(9, 0);
    CHECK(driver.used_index() == 2);
    CHECK(driver.used_element(0) == std::array<uint32_t, 2>{3, 513});
    CHECK(driver.used_element(1) == std::array<uint32_t, 2>{9, 0});
}

TEST_CASE("buffers that were taken back are the next ones again, and staged ones come at once") {
    GuestRam ram;
    DriverQueue driver{ram};
    Queue queue = open(ram, driver);
    for (uint16_t head = 0; head < 3; ++head) {
        driver.chain(head, {{0x10000, 8, kDescWrite, 0}});
        driver.offer(head);
    }
    Chain chain;
    for (int i = 0; i < 3; ++i)
        REQUIRE(*queue.pop(chain));
    CHECK_FALSE(queue.expect_kick());
    queue.unpop(2);
    CHECK(driver.kick_wanted_at() == 3); // for buffers beyond those taken back
    REQUIRE(*queue.pop(chain));
    CHECK(chain.head == 1);
    queue.stage(0, 8);
    queue.stage(1, 5);
    CHECK(driver.used_index() == 0);
    queue.publish();
    CHECK(driver.used_index() == 2);
    CHECK(driver.used_element(1) == std::array<uint32_t, 2>{1, 5});
    CHECK(queue.position() == Queue::Position{2, 2, 0});
}

TEST_CASE("indices go on beyond 65535") {
    GuestRam ram;
    DriverQueue driver{ram};
    driver.publish(65534);
    auto queue = Queue::open(ram.memory(), driver.layout(), kAll, {65534, 65534, 65534});
    REQUIRE(queue);
    driver.chain(0, {{0x10000, 4, 0, 0}});
    Chain chain;
    for (int i = 0; i < 4; ++i) {
        driver.want_interrupt_at(static_cast<uint16_t>(65534 + i));
        driver.offer(0);
        REQUIRE(*queue->pop(chain));
        queue->push(0, 0);
        CHECK(queue->needs_interrupt());
    }
    CHECK_FALSE(*queue->pop(chain));
    CHECK(driver.used_index() == 2);
    CHECK(queue->position() == Queue::Position{2, 2, 2});
}

TEST_CASE("a buffer over two blocks of RAM comes in two parts") {
    GuestRam ram;
    DriverQueue driver{ram};
    Queue queue = open(ram, driver);
    driver.chain(0, {{GuestRam::kSeam - 100, 300, kDescWrite, 0}});
    driver.offer(0);
    Chain chain;
    REQUIRE(*queue.pop(chain));
    REQUIRE(chain.writable.size() == 2);
    CHECK(chain.writable[0].bytes.size() == 100);
    CHECK(chain.writable[1].bytes.size() == 200);
    CHECK(chain.writable[1].bytes.data() == ram.at(GuestRam::kSeam));
    CHECK(chain.writable_bytes == 300);
}

TEST_CASE("an indirect table is followed where it was agreed on") {
    GuestRam ram;
    DriverQueue driver{ram};
    ram.put(0x20000, Desc{0x10000, 16, kDescNext, 2});
    ram.put(0x20020, Desc{0x11000, 64, kDescWrite, 0});
    driver.chain(0, {{0x20000, 48, kDescIndirect, 0}});
    driver.offer(0);
    Chain chain;
    Queue queue = open(ram, driver);
    REQUIRE(*queue.pop(chain));
    CHECK(chain.readable_bytes == 16);
    CHECK(chain.writable_bytes == 64);
    Queue without = open(ram, driver, virtio::kFeatureVersion1);
    CHECK(why(without.pop(chain)).find("was not agreed on") != std::string::npos);
}

TEST_CASE("rings that cannot be are refused, with a sentence") {
    GuestRam ram;
    const DriverQueue good{ram};
    struct Bad {
        Queue::Layout layout;
        const char* word;
    };
    auto with = [&](auto change) {
        auto layout = good.layout();
        change(layout);
        return layout;
    };
    const std::vector<Bad> all{
        {with([](auto& l) { l.size = 0; }), "cannot be"},
        {with([](auto& l) { l.size = 12; }), "cannot be"},
        {with([](auto& l) { l.size = 32768; }), "cannot be"},
        {with([](auto& l) { l.descriptors = 0x1008; }), "aligned"},
        {with([](auto& l) { l.available = 0x6001; }), "aligned"},
        {with([](auto& l) { l.used = 0x8002; }), "aligned"},
        {with([](auto& l) { l.descriptors = GuestRam::kSize - 16; }), "not within one region"},
        {with([](auto& l) { l.used = GuestRam::kSeam - 8; }), "not within one region"},
        {with([](auto& l) { l.available = uint64_t{1} << 45; }), "not within one region"},
        {with([](auto& l) { l.available = UINT64_MAX - 1; }), "not within one region"},
    };
    for (const Bad& bad : all) {
        const auto queue = Queue::open(ram.memory(), bad.layout, kAll, {});
        REQUIRE_FALSE(queue);
        CAPTURE(queue.error().message);
        CHECK(queue.error().message.find(bad.word) != std::string::npos);
    }
}

TEST_CASE("chains that cannot be break the ring, with a sentence") {
    struct Bad {
        std::function<void(DriverQueue&)> write;
        const char* word;
    };
    const std::vector<Bad> all{
        {[](DriverQueue& d) {
             d.describe(0, {0x10000, 1, kDescNext, 0});
         },
            "loop"},
        {[](DriverQueue& d) {
             d.describe(0, {0x10000, 1, kDescNext, 16});
         },
            "descriptor 16 of 16"},
        {[](DriverQueue& d) {
             d.chain(0, {{0x10000, 1, kDescWrite, 0}, {0x10000, 1, 0, 0}});
         },
            "after a writable"},
        {[](DriverQueue& d) {
             d.chain(0, {{GuestRam::kSize - 4, 8, 0, 0}});
         },
            "does not begin in RAM"},
        {[](DriverQueue& d) {
             d.chain(0, {{UINT64_MAX - 3, 8, 0, 0}});
         },
            "does not begin in RAM"},
        {[](DriverQueue& d) {
             d.chain(0, {{0x20000, 24, kDescIndirect, 0}});
         },
            "of 24 bytes"},
        {[](DriverQueue& d) {
             d.chain(0, {{0x20000, 0, kDescIndirect, 0}});
         },
            "of 0 bytes"},
        {[](DriverQueue& d) {
             d.chain(0, {{0x20000, 16, kDescIndirect | kDescNext, 1}});
         },
            "after an indirect"},
        {[](DriverQueue& d) {
             d.ram.put(0x20000, Desc{0x20000, 16, kDescIndirect, 0});
             d.chain(0, {{0x20000, 16, kDescIndirect, 0}});
         },
            "in an indirect table"},
        // The queue's own table as an indirect one, without end.
        {[](DriverQueue& d) {
             d.chain(0, {{d.descriptors, 16, kDescIndirect, 0}});
         },
            "in an indirect table"},
        {[](DriverQueue& d) {
             d.ram.put(0x20000, Desc{0x10000, 16, kDescNext, 0});
             d.chain(0, {{0x20000, 16, kDescIndirect, 0}});
         },
            "loop"},
        {[](DriverQueue& d) {
             d.chain(0, {{GuestRam::kSize - 16, 32, kDescIndirect, 0}});
         },
            "not within one region"},
    };
    for (const Bad& bad : all) {
        GuestRam ram;
        DriverQueue driver{ram};
        Queue queue = open(ram, driver);
        bad.write(driver);
        driver.offer(0);
        Chain chain;
        const auto popped = queue.pop(chain);
        CAPTURE(why(popped));
        REQUIRE_FALSE(popped);
        CHECK(popped.error().message.find(bad.word) != std::string::npos);
    }
    GuestRam ram;
    DriverQueue driver{ram};
    Queue queue = open(ram, driver);
    Chain chain;
    driver.offer(16);
    CHECK(why(queue.pop(chain)).find("descriptor 16 of 16") != std::string::npos);
    driver.publish(17 + 100);
    CHECK(why(queue.pop(chain)).find("ahead") != std::string::npos);
}

TEST_CASE("a driver is interrupted when it asked for it, by flag or by index") {
    GuestRam ram;
    DriverQueue driver{ram};
    Queue flags = open(ram, driver, virtio::kFeatureVersion1);
    CHECK_FALSE(flags.needs_interrupt()); // nothing happened
    flags.push(0, 0);
    CHECK(flags.needs_interrupt());
    ram.put<uint16_t>(driver.available, 1);
    flags.push(0, 0);
    CHECK_FALSE(flags.needs_interrupt());

    Queue index = open(ram, driver);
    driver.want_interrupt_at(2); // at the third
    index.push(0, 0);
    index.push(0, 0);
    CHECK_FALSE(index.needs_interrupt());
    index.push(0, 0);
    index.push(0, 0);
    CHECK(index.needs_interrupt());
    index.push(0, 0);
    CHECK_FALSE(index.needs_interrupt());
}

TEST_CASE("a driver kicks when the device asked for it") {
    GuestRam ram;
    DriverQueue driver{ram};
    Queue flags = open(ram, driver, virtio::kFeatureVersion1);
    flags.suppress_kicks();
    CHECK(ram.get<uint16_t>(driver.used) == 1);
    CHECK_FALSE(flags.expect_kick());
    CHECK(ram.get<uint16_t>(driver.used) == 0);
    driver.offer(0);
    CHECK(flags.expect_kick()); // it came before the driver was told

    Queue index = open(ram, driver);
    Chain chain;
    driver.describe(0, {0x10000, 4, 0, 0});
    REQUIRE(*index.pop(chain));
    CHECK_FALSE(index.expect_kick());
    CHECK(driver.kick_wanted_at() == 1);
}

TEST_CASE("random rings never lead outside RAM") {
    std::mt19937_64 random(7);
    int taken = 0;
    int refused = 0;
    for (int round = 0; round < 20000; ++round) {
        static GuestRam ram;
        DriverQueue driver{ram};
        for (uint64_t table : {driver.descriptors, uint64_t{0x20000}})
            for (uint64_t i = 0; i < 16; ++i) {
                Desc desc{random() % (GuestRam::kSize + 0x1000), static_cast<uint32_t>(random() % 0x3000),
                    static_cast<uint16_t>(random() % 4), static_cast<uint16_t>(random() % 17)};
                if (random() % 8 == 0)
                    desc = {0x20000, static_cast<uint32_t>(16 * (random() % 17)), kDescIndirect, 0};
                ram.put(table + 16 * i, desc);
            }
        Queue queue = open(ram, driver);
        driver.offer(static_cast<uint16_t>(random() % 17));
        Chain chain;
        const auto popped = queue.pop(chain);
        popped ? ++taken : ++refused;
        if (!popped) continue;
        uint64_t bytes = 0;
        for (const auto* part : {&chain.readable, &chain.writable})
            for (const auto& segment : *part) {
                REQUIRE(segment.gpa + segment.bytes.size() <= GuestRam::kSize);
                REQUIRE(segment.bytes.data() == ram.at(segment.gpa));
                bytes += segment.bytes.size();
            }
        REQUIRE(bytes == chain.readable_bytes + chain.writable_bytes);
    }
    CHECK(taken > 1000);
    CHECK(refused > 1000);
}

} // namespace
} // namespace liveupdate::vmm::test
