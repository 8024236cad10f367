#include "vmm/devices/pio_bus.hpp"

#include <doctest/doctest.h>

#include <array>
#include <vector>

namespace liveupdate::vmm::test {
namespace {

struct Access {
    uint16_t offset;
    unsigned size;
    uint32_t value;
    bool operator==(const Access&) const = default;
};

struct Recorder final : PioDevice {
    std::vector<Access> writes;
    uint32_t answer = 0;

    uint32_t read(uint16_t offset, unsigned) override { return answer + offset; }
    void write(uint16_t offset, unsigned size, uint32_t value) override {
        writes.push_back({offset, size, value});
    }
};

TEST_CASE("an access reaches the device that claims its ports, with the offset in its range") {
    PioBus bus;
    Recorder low, high;
    REQUIRE(bus.add("high", 0x3F8, 8, high));
    REQUIRE(bus.add("low", 0x60, 4, low));
    bus.write(0x3F9, 1, 0x12);
    bus.write(0x60, 4, 0xDEADBEEF);
    CHECK(high.writes == std::vector<Access>{{1, 1, 0x12}});
    CHECK(low.writes == std::vector<Access>{{0, 4, 0xDEADBEEF}});
}

TEST_CASE("ports that nobody claims read as all ones of the access's size") {
    PioBus bus;
    Recorder device;
    REQUIRE(bus.add("device", 0x100, 2, device));
    CHECK(bus.read(0xFF, 1) == 0xFF);
    CHECK(bus.read(0x102, 2) == 0xFFFF);
    CHECK(bus.read(0xFFFF, 4) == 0xFFFFFFFF);
    bus.write(0x102, 1, 1);
    CHECK(device.writes.empty());
}

TEST_CASE("an access that reaches over a range's border is nobody's") {
    PioBus bus;
    Recorder device;
    REQUIRE(bus.add("reset-control", 0xCF9, 1, device));
    bus.write(0xCF8, 4, 0x80000600);
    bus.write(0xCF9, 2, 0x0606);
    CHECK(device.writes.empty());
    CHECK(bus.read(0xCF9, 2) == 0xFFFF);
}

TEST_CASE("a claim that overlaps another is refused with both names") {
    PioBus bus;
    Recorder device;
    REQUIRE(bus.add("first", 0x100, 8, device));
    for (const auto& [port, length] :
        {std::pair{0x107, 1}, {0xFF, 2}, {0x100, 8}, {0xF0, 0x40}, {0x102, 2}}) {
        const auto added =
            bus.add("second", static_cast<uint16_t>(port), static_cast<uint32_t>(length), device);
        REQUIRE_FALSE(added);
        CHECK(added.error().message.find("second") != std::string::npos);
        CHECK(added.error().message.find("first") != std::string::npos);
    }
    CHECK(bus.add("before", 0xFF, 1, device));
    CHECK(bus.add("after", 0x108, 1, device));
}

TEST_CASE("empty claims and claims beyond the last port are refused") {
    PioBus bus;
    Recorder device;
    CHECK_FALSE(bus.add("none", 0x100, 0, device));
    CHECK_FALSE(bus.add("far", 0xFFFF, 2, device));
    CHECK_FALSE(bus.add("huge", 1, UINT32_MAX, device));
    CHECK(bus.add("all", 0, 0x10000, device));
}

TEST_CASE("string output is one access for each item") {
    PioBus bus;
    Recorder device;
    REQUIRE(bus.add("device", 0x100, 4, device));
    const std::array<uint8_t, 4> data{0x11, 0x22, 0x33, 0x44};
    bus.write_string(0x100, 2, data);
    CHECK(device.writes == std::vector<Access>{{0, 2, 0x2211}, {0, 2, 0x4433}});
}

TEST_CASE("string input fills every item, little-endian") {
    PioBus bus;
    Recorder device;
    device.answer = 0xCAFEBABE;
    REQUIRE(bus.add("device", 0x100, 4, device));
    std::array<uint8_t, 8> data{};
    bus.read_string(0x100, 4, data);
    CHECK(data == std::array<uint8_t, 8>{0xBE, 0xBA, 0xFE, 0xCA, 0xBE, 0xBA, 0xFE, 0xCA});
    CHECK(bus.read(0x100, 1) == 0xBE);
}

} // namespace
} // namespace liveupdate::vmm::test
