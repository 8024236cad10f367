#include "vmm/boot/e820.hpp"

#include <doctest/doctest.h>

namespace liveupdate::vmm::test {
namespace {

TEST_CASE("the memory map tells all RAM but the BIOS's, and the hole as reserved") {
    const std::vector<MemoryRegion> regions{{0, 3 * kGiB, 0, 0}, {4 * kGiB, 5 * kGiB, 0, 3 * kGiB}};
    CHECK(boot_memory_map(regions) == std::vector<MapEntry>{{0, 0x9FC00, kMapRam},
                                          {0x9FC00, 0x60400, kMapReserved},
                                          {0x100000, 3 * kGiB - 0x100000, kMapRam},
                                          {3 * kGiB, kGiB, kMapReserved}, {4 * kGiB, 5 * kGiB, kMapRam}});
}

TEST_CASE("the memory map of many blocks is in order and without overlap") {
    const std::vector<MemoryRegion> regions{{0, kPageSize, 0, 0}, {kPageSize, kGiB, 1, 0},
        {kPageSize + kGiB, 2 * kGiB - kPageSize, 2, 0}, {4 * kGiB, kGiB + kPageSize, 2, 2 * kGiB - kPageSize},
        {5 * kGiB + kPageSize, kGiB, 3, 0}};
    uint64_t end = 0, ram = 0;
    for (const MapEntry& entry : boot_memory_map(regions)) {
        CHECK(entry.address >= end);
        CHECK(entry.size > 0);
        end = entry.address + entry.size;
        if (entry.type == kMapRam) ram += entry.size;
    }
    CHECK(ram == 5 * kGiB + kPageSize - 0x60400);
}

} // namespace
} // namespace liveupdate::vmm::test
