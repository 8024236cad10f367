// Bounds-checked access to guest RAM as the manifest lays it out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "handoff/base/result.hpp"
#include "vmm/boot/write_log.hpp"

namespace liveupdate::vmm {

constexpr uint64_t kPageSize = 4096;
constexpr uint64_t kGiB = uint64_t{1} << 30;
constexpr uint64_t kPciHoleStart = 3 * kGiB;
constexpr uint64_t kPciHoleEnd = 4 * kGiB;
// 46 bits of physical address are the least that current server CPUs give a guest.
constexpr uint64_t kPhysicalLimit = uint64_t{1} << 46;

// A stretch of RAM that is contiguous both in the guest and in its block.
struct MemoryRegion {
    uint64_t gpa;          // guest physical address, bytes
    uint64_t size;         // bytes
    size_t block;          // index of the RAM block
    uint64_t block_offset; // bytes into the block

    bool operator==(const MemoryRegion&) const = default;
};

// A stretch of guest physical memory, RAM or not.
struct GuestRange {
    uint64_t start;
    uint64_t size; // bytes

    bool overlaps(const GuestRange& other) const {
        return start < other.start + other.size && other.start < start + size;
    }
};

// A view of mapped guest RAM; owns nothing. No access crosses from one region into another, even where the
// guest sees them side by side. Not for use on addresses that the guest may unmap; there is no locking.
class GuestMemory {
public:
    // blocks[i] is where RAM block i is mapped; it must outlive the view.
    // Refused: a region beyond its block, an empty one, and regions that overlap or are out of order.
    static Result<GuestMemory> over(
        std::vector<MemoryRegion> regions, std::span<const std::span<uint8_t>> blocks);

    // The bytes of [gpa, gpa + size), all within one region; `size` may be 0.
    Result<std::span<uint8_t>> at(uint64_t gpa, uint64_t size) const;
    // As many bytes from `gpa` on as lie in its region, at most `size`; never none unless `size` is 0.
    Result<std::span<uint8_t>> leading(uint64_t gpa, uint64_t size) const;

    Result<void> read(uint64_t gpa, std::span<uint8_t> into) const;
    Result<void> write(uint64_t gpa, std::span<const uint8_t> bytes) const;
    Result<void> zero(uint64_t gpa, uint64_t size) const;

    std::span<const MemoryRegion> regions() const { return regions_; }

    // For devices: [gpa, gpa + size), which is RAM, has just been written. Cheap while nobody copies RAM.
    void note_write(uint64_t gpa, uint64_t size) const;
    // Pages are counted from the first region's first on, region after region.
    WriteLog& write_log() const { return *log_; }
    uint64_t pages() const;

private:
    GuestMemory(std::vector<MemoryRegion> regions, std::vector<std::span<uint8_t>> bytes)
        : regions_(std::move(regions)), bytes_(std::move(bytes)) {}

    std::vector<MemoryRegion> regions_;
    std::vector<std::span<uint8_t>> bytes_; // of the region with the same index
    std::shared_ptr<WriteLog> log_ = std::make_shared<WriteLog>();
};

// "[0x1000, +0x2000)" for the 0x2000 bytes from 0x1000 on; for error sentences.
std::string describe_range(uint64_t start, uint64_t size);

} // namespace liveupdate::vmm
