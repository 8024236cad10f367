#include "vmm/devices/mmio_bus.hpp"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>

namespace liveupdate::vmm {
namespace {

constexpr uint64_t kAddressLimit = uint64_t{1} << 52; // no x86 CPU has more physical addresses

std::string describe(const std::string& owner, uint64_t first, uint64_t end) {
    char addresses[64];
    std::snprintf(addresses, sizeof addresses, " (0x%llx to 0x%llx)", static_cast<unsigned long long>(first),
        static_cast<unsigned long long>(end - 1));
    return owner + addresses;
}

} // namespace

Result<void> MmioBus::add(std::string owner, uint64_t first, uint64_t length, MmioDevice& device) {
    if (length == 0) return Error(ErrorCode::kInvalid, owner + " claims no addresses");
    if (first > kAddressLimit || length > kAddressLimit - first)
        return Error(ErrorCode::kInvalid, owner + " claims addresses that do not exist");
    const uint64_t end = first + length;
    for (const Range& other : ranges_)
        if (first < other.end && other.first < end)
            return Error(ErrorCode::kInvalid,
                describe(owner, first, end) + " overlaps " + describe(other.owner, other.first, other.end));
    const auto at = std::upper_bound(ranges_.begin(), ranges_.end(), first,
        [](uint64_t address, const Range& range) { return address < range.first; });
    ranges_.insert(at, Range{first, end, &device, std::move(owner)});
    return {};
}

const MmioBus::Range* MmioBus::find(uint64_t address, size_t size) const {
    if (!std::has_single_bit(size) || size > sizeof(uint64_t)) return nullptr;
    const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), address,
        [](uint64_t a, const Range& range) { return a < range.first; });
    if (after == ranges_.begin()) return nullptr;
    const Range& range = *std::prev(after);
    return address < range.end && size <= range.end - address ? &range : nullptr;
}

void MmioBus::read(uint64_t address, std::span<uint8_t> data) const {
    uint64_t value = UINT64_MAX;
    if (const Range* range = find(address, data.size()))
        value = range->device->read(address - range->first, static_cast<unsigned>(data.size()));
    for (size_t i = 0; i < data.size(); ++i)
        data[i] = static_cast<uint8_t>(i < sizeof value ? value >> (8 * i) : 0xff);
}

void MmioBus::write(uint64_t address, std::span<const uint8_t> data) const {
    const Range* range = find(address, data.size());
    if (range == nullptr) return;
    uint64_t value = 0;
    std::memcpy(&value, data.data(), data.size()); // little-endian, as the host
    range->device->write(address - range->first, static_cast<unsigned>(data.size()), value);
}

} // namespace liveupdate::vmm
