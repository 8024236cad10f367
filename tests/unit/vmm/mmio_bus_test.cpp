#include "vmm/devices/mmio_bus.hpp"

#include <doctest/doctest.h>

#include <array>

namespace liveupdate::vmm::test {
namespace {

struct Recorder final : MmioDevice {
    uint64_t offset = 0;
    unsigned size = 0;
    uint64_t value = 0;
    int accesses = 0;

    uint64_t read(uint64_t at, unsigned bytes) override {
        note(at, bytes);
        return 0x8877665544332211;
    }
    void write(uint64_t at, unsigned bytes, uint64_t written) override {
        note(at, bytes);
        value = written;
    }
    void note(uint64_t at, unsigned bytes) {
        offset = at;
        size = bytes;
        ++accesses;
    }
};

TEST_CASE("an MMIO access reaches the device that claims all of it") {
    Recorder device;
    MmioBus bus;
    REQUIRE(bus.add("device", 0xd0000000, 0x200, device));
    std::array<uint8_t, 4> word{};
    bus.read(0xd0000010, word);
    CHECK(device.offset == 0x10);
    CHECK(device.size == 4);
    CHECK(word == std::array<uint8_t, 4>{0x11, 0x22, 0x33, 0x44});
    const std::array<uint8_t, 2> half{0xcd, 0xab};
    bus.write(0xd00001fe, half);
    CHECK(device.offset == 0x1fe);
    CHECK(device.value == 0xabcd);
}

TEST_CASE("what nobody claims reads as all ones and swallows writes") {
    Recorder device;
    MmioBus bus;
    REQUIRE(bus.add("device", 0x1000, 0x100, device));
    for (const uint64_t address : {0x0ull, 0xffcull + 1, 0x10fdull, 0x1100ull, 0xffffffffffffffffull}) {
        std::array<uint8_t, 4> word{};
        bus.read(address, word);
        CHECK(word == std::array<uint8_t, 4>{0xff, 0xff, 0xff, 0xff});
        bus.write(address, word);
    }
    std::array<uint8_t, 3> odd{};
    bus.read(0x1000, odd); // no CPU does that to a device
    CHECK(odd == std::array<uint8_t, 3>{0xff, 0xff, 0xff});
    CHECK(device.accesses == 0);
}

TEST_CASE("MMIO ranges that overlap or do not exist are refused") {
    Recorder device;
    MmioBus bus;
    REQUIRE(bus.add("first", 0x1000, 0x100, device));
    CHECK_FALSE(bus.add("none", 0x3000, 0, device));
    CHECK_FALSE(bus.add("beyond", UINT64_MAX - 1, 0x100, device));
    const auto overlap = bus.add("second", 0x10ff, 1, device);
    REQUIRE_FALSE(overlap);
    CHECK(overlap.error().message.find("first (0x1000 to 0x10ff)") != std::string::npos);
    CHECK(bus.add("second", 0x1100, 1, device));
}

} // namespace
} // namespace liveupdate::vmm::test
