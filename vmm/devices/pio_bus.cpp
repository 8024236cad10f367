#include "vmm/devices/pio_bus.hpp"

#include <algorithm>
#include <cassert>
#include <cstdio>

namespace liveupdate::vmm {
namespace {

std::string describe(const std::string& owner, uint32_t first, uint32_t end) {
    char ports[48];
    std::snprintf(ports, sizeof ports, " (ports 0x%x to 0x%x)", first, end - 1);
    return owner + ports;
}

uint32_t ones(unsigned size) {
    return size >= 4 ? UINT32_MAX : (uint32_t{1} << (8 * size)) - 1;
}

[[maybe_unused]] bool legal(unsigned size) {
    return size == 1 || size == 2 || size == 4;
}

} // namespace

Result<void> PioBus::add(std::string owner, uint16_t first, uint32_t length, PioDevice& device) {
    if (length == 0) return Error(ErrorCode::kInvalid, owner + " claims no ports");
    const uint32_t end = first + length;
    if (length > 0x10000 || end > 0x10000)
        return Error(ErrorCode::kInvalid, owner + " claims ports beyond 0xffff");
    for (const Range& other : ranges_)
        if (first < other.end && other.first < end)
            return Error(ErrorCode::kInvalid,
                describe(owner, first, end) + " overlaps " + describe(other.owner, other.first, other.end));
    const auto at = std::upper_bound(ranges_.begin(), ranges_.end(), uint32_t{first},
        [](uint32_t port, const Range& range) { return port < range.first; });
    ranges_.insert(at, Range{first, end, &device, std::move(owner)});
    return {};
}

const PioBus::Range* PioBus::find(uint16_t port, unsigned size) const {
    const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), uint32_t{port},
        [](uint32_t p, const Range& range) { return p < range.first; });
    if (after == ranges_.begin()) return nullptr;
    const Range& range = *std::prev(after);
    return uint32_t{port} + size <= range.end ? &range : nullptr;
}

uint32_t PioBus::read(uint16_t port, unsigned size) const {
    assert(legal(size));
    const Range* range = find(port, size);
    if (range == nullptr) return ones(size);
    return range->device->read(static_cast<uint16_t>(port - range->first), size) & ones(size);
}

void PioBus::write(uint16_t port, unsigned size, uint32_t value) const {
    assert(legal(size));
    if (const Range* range = find(port, size))
        range->device->write(static_cast<uint16_t>(port - range->first), size, value & ones(size));
}

void PioBus::read_string(uint16_t port, unsigned size, std::span<uint8_t> data) const {
    assert(legal(size) && data.size() % size == 0);
    for (size_t at = 0; at + size <= data.size(); at += size) {
        const uint32_t value = read(port, size);
        for (unsigned i = 0; i < size; ++i)
            data[at + i] = static_cast<uint8_t>(value >> (8 * i));
    }
}

void PioBus::write_string(uint16_t port, unsigned size, std::span<const uint8_t> data) const {
    assert(legal(size) && data.size() % size == 0);
    for (size_t at = 0; at + size <= data.size(); at += size) {
        uint32_t value = 0;
        for (unsigned i = 0; i < size; ++i)
            value |= uint32_t{data[at + i]} << (8 * i);
        write(port, size, value);
    }
}

} // namespace liveupdate::vmm
