#include "vmm/boot/e820.hpp"

#include <algorithm>

namespace liveupdate::vmm {
namespace {

void add_entry(std::vector<MapEntry>& map, uint64_t start, uint64_t end, uint32_t type) {
    if (start < end) map.push_back({start, end - start, type});
}

} // namespace

std::vector<MapEntry> boot_memory_map(std::span<const MemoryRegion> regions) {
    std::vector<MapEntry> map;
    for (const MemoryRegion& region : regions) {
        const uint64_t end = region.gpa + region.size;
        add_entry(map, region.gpa, std::min(end, kLowRamEnd), kMapRam);
        add_entry(map, std::max(region.gpa, kLowRamEnd), std::min(end, kHighRamStart), kMapReserved);
        add_entry(map, std::max(region.gpa, kHighRamStart), end, kMapRam);
    }
    const auto above = std::find_if(
        map.begin(), map.end(), [](const MapEntry& entry) { return entry.address >= kPciHoleEnd; });
    map.insert(above, {kPciHoleStart, kPciHoleEnd - kPciHoleStart, kMapReserved});
    return map;
}

} // namespace liveupdate::vmm
