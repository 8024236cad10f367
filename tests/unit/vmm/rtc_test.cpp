#include "vmm/devices/rtc.hpp"

#include <doctest/doctest.h>

#include <array>
#include <random>

#include "tests/unit/vmm/fakes.hpp"

namespace liveupdate::vmm::test {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint8_t kA = 0xA, kB = 0xB, kSet = 0x80, kHours24 = 0x02, kBinary = 0x04, kUip = 0x80;

struct Rig {
    FakeClock clock;
    Rtc rtc{clock};

    uint8_t get(uint8_t index) {
        rtc.write(0, 1, index);
        return static_cast<uint8_t>(rtc.read(1, 1));
    }
    void set(uint8_t index, uint8_t value) {
        rtc.write(0, 1, index);
        rtc.write(1, 1, value);
    }
    // Century, year, month, day, day of week, hour, minute, second as they stand in the registers.
    std::array<uint8_t, 8> time() {
        return {get(0x32), get(9), get(8), get(7), get(6), get(4), get(2), get(0)};
    }
    using Time = std::array<uint8_t, 8>;
    // As Linux does it: SET, the divider held, the bytes, then both let go.
    void set_time(const Time& t) {
        const uint8_t b = get(kB), a = get(kA);
        set(kB, b | kSet);
        set(kA, a | 0x70);
        const std::array<uint8_t, 8> indices = {0x32, 9, 8, 7, 6, 4, 2, 0};
        for (size_t i = 0; i < t.size(); ++i)
            set(indices[i], t[i]);
        set(kB, b);
        set(kA, a);
    }
};

using Time = Rig::Time;

TEST_CASE("the time of day is the host's, in BCD and 24 hours at first") {
    Rig rig;
    CHECK(rig.time() == Time{0x20, 0x26, 0x11, 0x22, 0x01, 0x10, 0x15, 0x30});
    rig.clock.advance(kSecond * (3600 * 4 + 60 * 44 + 29)); // 14:59:59
    CHECK(rig.time() == Time{0x20, 0x26, 0x11, 0x22, 0x01, 0x14, 0x59, 0x59});
    rig.clock.advance(kSecond);
    CHECK(rig.time() == Time{0x20, 0x26, 0x11, 0x22, 0x01, 0x15, 0x00, 0x00});
}

TEST_CASE("the time is told in binary and in 12 hours when the guest wants that") {
    Rig rig;
    rig.set(kB, kHours24 | kBinary);
    CHECK(rig.time() == Time{20, 26, 11, 22, 1, 10, 15, 30});
    rig.set(kB, kBinary);
    CHECK(rig.get(4) == 10);
    rig.clock.advance(kSecond * 3600 * 2);
    CHECK(rig.get(4) == (12 | 0x80)); // noon
    rig.clock.advance(kSecond * 3600 * 3);
    CHECK(rig.get(4) == (3 | 0x80));
    rig.clock.advance(kSecond * 3600 * 9);
    CHECK(rig.get(4) == 12); // midnight
}

TEST_CASE("a time that the guest sets goes on from there, half a second before its next change") {
    Rig rig;
    rig.clock.advance(123'456'789);
    rig.set_time({0x19, 0x99, 0x12, 0x31, 0x06, 0x23, 0x59, 0x59});
    CHECK(rig.time() == Time{0x19, 0x99, 0x12, 0x31, 0x06, 0x23, 0x59, 0x59});
    rig.clock.advance(kSecond / 2 - 1);
    CHECK(rig.get(0) == 0x59);
    rig.clock.advance(1);
    CHECK(rig.time() == Time{0x20, 0x00, 0x01, 0x01, 0x07, 0x00, 0x00, 0x00}); // a Saturday
    rig.clock.advance(kSecond * 86400 * 59);
    CHECK(rig.time() == Time{0x20, 0x00, 0x02, 0x29, 0x03, 0x00, 0x00, 0x00});
}

TEST_CASE("a stopped clock stands still and is read as it was written") {
    Rig rig;
    rig.set(kB, kSet | kHours24);
    CHECK(rig.get(0) == 0x30); // as it was
    rig.clock.advance(10 * kSecond);
    CHECK(rig.get(0) == 0x30);
    CHECK((rig.get(kA) & kUip) == 0);
    rig.set(4, 0x77);
    CHECK(rig.get(4) == 0x77);
    rig.set(4, 0x10);
    rig.set(kB, kHours24);
    CHECK(rig.time() == Time{0x20, 0x26, 0x11, 0x22, 0x01, 0x10, 0x15, 0x30});
}

TEST_CASE("a single part of the time can be set while the clock runs") {
    Rig rig;
    rig.clock.advance(kSecond / 4);
    rig.set(2, 0x45);
    CHECK(rig.time() == Time{0x20, 0x26, 0x11, 0x22, 0x01, 0x10, 0x45, 0x30});
    rig.clock.advance(kSecond * 3 / 4 - 1);
    CHECK(rig.get(0) == 0x30);
    rig.clock.advance(1);
    CHECK(rig.get(0) == 0x31);
}

TEST_CASE("the update-in-progress bit is set for the last 244 us of each second") {
    Rig rig;
    CHECK((rig.get(kA) & kUip) == 0);
    rig.clock.advance(kSecond - 244'001);
    CHECK((rig.get(kA) & kUip) == 0);
    rig.clock.advance(1);
    CHECK(rig.get(kA) == (0x26 | kUip));
    rig.clock.advance(243'999);
    CHECK((rig.get(kA) & kUip) != 0);
    rig.clock.advance(1);
    CHECK((rig.get(kA) & kUip) == 0);
    CHECK(rig.get(0) == 0x31);
}

TEST_CASE("memory keeps what is written to it, and the other registers what they are") {
    Rig rig;
    for (const uint8_t index : {uint8_t{0x0E}, uint8_t{0x0F}, uint8_t{0x31}, uint8_t{0x33}, uint8_t{0x7F},
             uint8_t{1}, uint8_t{3}, uint8_t{5}}) {
        CHECK(rig.get(index) == 0);
        rig.set(index, static_cast<uint8_t>(index ^ 0xA5));
        CHECK(rig.get(index) == (index ^ 0xA5));
    }
    rig.set(0xC, 0xFF);
    rig.set(0xD, 0x00);
    CHECK(rig.get(0xC) == 0);
    CHECK(rig.get(0xD) == 0x80);
    CHECK(rig.rtc.read(0, 1) == 0xFF); // the index is write-only
    rig.rtc.write(0, 1, 0x80 | 0x0E);  // with NMIs masked
    CHECK(rig.rtc.read(1, 1) == (0x0E ^ 0xA5));
    rig.rtc.write(0, 2, 0x5A00 | 0x0E); // index and data at once
    CHECK(rig.rtc.read(1, 1) == 0x5A);
}

TEST_CASE("no bytes that a guest writes as a time do harm") {
    std::mt19937 random(7);
    for (int round = 0; round < 2000; ++round) {
        Rig rig;
        rig.set(kB, static_cast<uint8_t>(random()) & (kHours24 | kBinary));
        Time t{};
        for (uint8_t& byte : t)
            byte = static_cast<uint8_t>(random());
        rig.set_time(t);
        const auto read = rig.time();
        rig.clock.advance(kSecond / 4);
        CHECK(rig.time() == read); // whatever it is, it goes on as a time
    }
}

TEST_CASE("an update does not make the time jump") {
    Rig source;
    source.set_time({0x20, 0x01, 0x02, 0x03, 0x07, 0x04, 0x05, 0x06});
    source.set(0x40, 0x99);
    source.clock.advance(kSecond * 100 + kSecond / 3);
    source.rtc.write(0, 1, 4); // the index is state too
    const auto saved = source.rtc.save();
    REQUIRE(saved);

    Rig destination;
    destination.clock.realtime = source.clock.realtime;
    REQUIRE(destination.rtc.load(*saved, 1));
    CHECK(destination.rtc.read(1, 1) == 0x04);
    CHECK(destination.time() == Time{0x20, 0x01, 0x02, 0x03, 0x07, 0x04, 0x06, 0x46});
    CHECK(destination.get(0x40) == 0x99);
    for (int step = 0; step < 100; ++step) {
        source.clock.advance(kSecond / 7);
        destination.clock.realtime = source.clock.realtime;
        CHECK(destination.time() == source.time());
        CHECK(destination.get(kA) == source.get(kA));
    }
}

TEST_CASE("a clock that was stopped when it was saved is stopped where it is loaded") {
    Rig source, destination;
    source.set(kB, kSet | kHours24);
    const auto saved = source.rtc.save();
    REQUIRE(saved);
    destination.clock.advance(50 * kSecond);
    REQUIRE(destination.rtc.load(*saved, 1));
    CHECK(destination.time() == Time{0x20, 0x26, 0x11, 0x22, 0x01, 0x10, 0x15, 0x30});
}

} // namespace
} // namespace liveupdate::vmm::test
