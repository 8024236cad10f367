#include "vmm/boot/memory_map.hpp"

#include <algorithm>
#include <vector>

#include <doctest/doctest.h>

namespace liveupdate::vmm::test {
namespace {

struct TwoRegions {
    std::vector<uint8_t> first = std::vector<uint8_t>(0x2000), second = std::vector<uint8_t>(0x1000);
    std::vector<std::span<uint8_t>> blocks{first, second};
    GuestMemory memory =
        *GuestMemory::over({{0, 0x1000, 0, 0}, {0x1000, 0x1000, 1, 0}, {0x4000, 0x1000, 0, 0x1000}}, blocks);
};

TEST_CASE("an address leads to the byte of its block") {
    TwoRegions two;
    const std::vector<uint8_t> text{1, 2, 3};
    REQUIRE(two.memory.write(0x4FFD, text));
    CHECK(two.first[0x1FFF] == 3);
    REQUIRE(two.memory.write(0x1000, text));
    CHECK(two.second[0] == 1);
    std::vector<uint8_t> back(3);
    REQUIRE(two.memory.read(0x4FFD, back));
    CHECK(back == text);
    REQUIRE(two.memory.zero(0x4000, 0x1000));
    CHECK(two.first[0x1FFF] == 0);
}

TEST_CASE("access outside RAM or across the border of a region is refused") {
    TwoRegions two;
    CHECK(two.memory.at(0xFFF, 1));
    CHECK(two.memory.at(0x1000, 0));
    CHECK_FALSE(two.memory.at(0xFFF, 2));
    CHECK_FALSE(two.memory.at(0x2000, 1));
    CHECK_FALSE(two.memory.at(0x2000, 0));
    CHECK_FALSE(two.memory.at(0x3FFF, 2));
    CHECK_FALSE(two.memory.at(0x4FFF, UINT64_MAX));
    CHECK_FALSE(two.memory.at(UINT64_MAX, 2));
    CHECK_FALSE(two.memory.zero(0x4800, 0x801));
}

TEST_CASE("regions that do not fit their blocks or each other are refused") {
    std::vector<uint8_t> bytes(0x2000);
    const std::vector<std::span<uint8_t>> blocks{bytes};
    CHECK_FALSE(GuestMemory::over({{0, 0x1000, 1, 0}}, blocks));
    CHECK_FALSE(GuestMemory::over({{0, 0x3000, 0, 0}}, blocks));
    CHECK_FALSE(GuestMemory::over({{0, 0x2000, 0, 0x1000}}, blocks));
    CHECK_FALSE(GuestMemory::over({{0, 0x1000, 0, UINT64_MAX}}, blocks));
    CHECK_FALSE(GuestMemory::over({{0, 0x1000, 0, 0}, {0x800, 0x1000, 0, 0x1000}}, blocks));
    CHECK_FALSE(GuestMemory::over({{UINT64_MAX, 0x1000, 0, 0}}, blocks));
    CHECK_FALSE(GuestMemory::over({{0, 0, 0, 0}}, blocks));
}

} // namespace
} // namespace liveupdate::vmm::test
