#include "vmm/boot/memory_map.hpp"

#include <algorithm>
#include <cstdio>
#include <string>

namespace liveupdate::vmm {
namespace {

Error invalid(std::string why) {
    return {ErrorCode::kInvalid, std::move(why)};
}

std::string name_of(size_t block) {
    return "RAM block " + std::to_string(block);
}

} // namespace

uint64_t GuestMemory::pages() const {
    uint64_t pages = 0;
    for (const MemoryRegion& region : regions_)
        pages += region.size / kPageSize;
    return pages;
}

void GuestMemory::note_write(uint64_t gpa, uint64_t size) const {
    if (!log_->on() || size == 0) return;
    uint64_t before = 0; // pages of the regions before
    for (const MemoryRegion& region : regions_) {
        const uint64_t from = std::max(gpa, region.gpa);
        const uint64_t to = std::min(gpa + size, region.gpa + region.size);
        if (from < to) {
            const uint64_t first = (from - region.gpa) / kPageSize;
            log_->note(before + first, (to - region.gpa + kPageSize - 1) / kPageSize - first);
        }
        before += region.size / kPageSize;
    }
}

std::string describe_range(uint64_t start, uint64_t size) {
    char text[64];
    std::snprintf(text, sizeof text, "[0x%llx, +0x%llx)", static_cast<unsigned long long>(start),
        static_cast<unsigned long long>(size));
    return text;
}

Result<GuestMemory> GuestMemory::over(
    std::vector<MemoryRegion> regions, std::span<const std::span<uint8_t>> blocks) {
    std::vector<std::span<uint8_t>> bytes;
    uint64_t end = 0;
    for (const MemoryRegion& region : regions) {
        const std::string where = "RAM region " + describe_range(region.gpa, region.size);
        if (region.block >= blocks.size())
            return invalid(where + " names " + name_of(region.block) + ", which is not there");
        const auto block = blocks[region.block];
        if (region.block_offset > block.size() || region.size > block.size() - region.block_offset)
            return invalid(where + " ends beyond " + name_of(region.block));
        if (region.size == 0 || region.gpa < end || region.gpa > kPhysicalLimit ||
            region.size > kPhysicalLimit - region.gpa)
            return invalid(where + " is empty, too high, or overlaps the one before");
        end = region.gpa + region.size;
        bytes.push_back(block.subspan(region.block_offset, region.size));
    }
    return GuestMemory(std::move(regions), std::move(bytes));
}

Result<std::span<uint8_t>> GuestMemory::at(uint64_t gpa, uint64_t size) const {
    for (size_t i = 0; i < regions_.size(); ++i) {
        const MemoryRegion& region = regions_[i];
        if (gpa < region.gpa || gpa - region.gpa >= region.size) continue;
        const uint64_t offset = gpa - region.gpa;
        if (size > region.size - offset) break;
        return bytes_[i].subspan(offset, size);
    }
    return invalid("guest memory " + describe_range(gpa, size) + " is not within one region of RAM");
}

Result<std::span<uint8_t>> GuestMemory::leading(uint64_t gpa, uint64_t size) const {
    for (size_t i = 0; i < regions_.size(); ++i) {
        const MemoryRegion& region = regions_[i];
        if (gpa < region.gpa || gpa - region.gpa >= region.size) continue;
        const uint64_t offset = gpa - region.gpa;
        return bytes_[i].subspan(offset, std::min(size, region.size - offset));
    }
    return invalid("guest memory " + describe_range(gpa, size) + " does not begin in RAM");
}

Result<void> GuestMemory::read(uint64_t gpa, std::span<uint8_t> into) const {
    TRY_ASSIGN(const auto bytes, at(gpa, into.size()));
    std::copy(bytes.begin(), bytes.end(), into.begin());
    return {};
}

Result<void> GuestMemory::write(uint64_t gpa, std::span<const uint8_t> bytes) const {
    TRY_ASSIGN(const auto target, at(gpa, bytes.size()));
    std::copy(bytes.begin(), bytes.end(), target.begin());
    return {};
}

Result<void> GuestMemory::zero(uint64_t gpa, uint64_t size) const {
    TRY_ASSIGN(const auto target, at(gpa, size));
    std::fill(target.begin(), target.end(), uint8_t{0});
    return {};
}

} // namespace liveupdate::vmm
