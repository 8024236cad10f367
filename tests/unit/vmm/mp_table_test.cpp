#include "vmm/boot/mp_table.hpp"

#include <doctest/doctest.h>

#include <cstring>
#include <map>
#include <numeric>
#include <span>

#include "tests/unit/vmm/boot_fixture.hpp"
#include "vmm/boot/platform_tables.hpp"

namespace liveupdate::vmm::test {
namespace {

uint8_t sum(std::span<const uint8_t> bytes) {
    return static_cast<uint8_t>(std::accumulate(bytes.begin(), bytes.end(), 0u));
}

TEST_CASE("the MP table adds up, and has each CPU, bus and pin once") {
    Platform platform;
    platform.vcpus = 3;
    const auto bytes = mp_table(platform, 0xF0000);
    CHECK(std::memcmp(bytes.data(), "_MP_", 4) == 0);
    CHECK(sum(std::span(bytes).first(16)) == 0);
    uint32_t table_at = 0;
    std::memcpy(&table_at, &bytes[4], 4);
    const auto table = std::span(bytes).subspan(table_at - 0xF0000);
    CHECK(std::memcmp(table.data(), "PCMP", 4) == 0);
    CHECK(table.size() == table[4] + table[5] * 256u);
    CHECK(sum(table) == 0);

    std::map<uint8_t, unsigned> types;
    std::map<uint8_t, uint8_t> pin_of;
    unsigned count = 0;
    for (size_t at = 44; at < table.size(); ++count) {
        const uint8_t type = table[at];
        ++types[type];
        if (type == 0) CHECK(table[at + 3] == (table[at + 1] == 0 ? 3 : 1)); // the first one starts
        if (type == 3) pin_of[table[at + 5]] = table[at + 7];
        at += type == 0 ? 20 : 8;
    }
    CHECK(count == table[34] + table[35] * 256u);
    CHECK(types == std::map<uint8_t, unsigned>{{0, 3}, {1, 1}, {2, 1}, {3, 23}, {4, 2}});
    CHECK(pin_of[0] == 2);
    CHECK(pin_of[9] == 9);
    CHECK(pin_of[23] == 23);
    CHECK_FALSE(pin_of.contains(2));
}

TEST_CASE("the firmware's tables lie where operating systems look for them") {
    Ram ram;
    Platform platform;
    platform.vcpus = 64;
    const auto rsdp = write_platform_tables(ram.memory, platform);
    REQUIRE(rsdp);
    CHECK(*rsdp == 0xE0000);
    CHECK(std::memcmp(&ram.bytes[0xE0000], "RSD PTR ", 8) == 0);
    CHECK(std::memcmp(&ram.bytes[0xF0000], "_MP_", 4) == 0);
    CHECK(ram.bytes[0xDFFFF] == 0xEE);
    CHECK(ram.bytes[0x100000] == 0xEE);
}

} // namespace
} // namespace liveupdate::vmm::test
