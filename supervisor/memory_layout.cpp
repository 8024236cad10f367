#include "supervisor/memory_layout.hpp"

#include <algorithm>

namespace liveupdate::supervisor {

Result<std::vector<handoff::RamRegion>> lay_out_memory(std::span<const uint64_t> block_sizes) {
    constexpr uint64_t kPage = 4096;
    std::vector<handoff::RamRegion> regions;
    uint64_t gpa = 0;
    for (size_t block = 0; block < block_sizes.size(); ++block) {
        const uint64_t size = block_sizes[block];
        if (size == 0 || size % kPage != 0)
            return Error(ErrorCode::kInvalid,
                "a RAM block of " + std::to_string(size) + " bytes is not made of whole pages");
        for (uint64_t offset = 0; offset < size;) {
            if (gpa == kPciHoleStart) gpa = kPciHoleEnd;
            const uint64_t room =
                gpa < kPciHoleStart ? kPciHoleStart - gpa : handoff::kMaxGuestPhysical - gpa;
            const uint64_t part = std::min(size - offset, room);
            if (part == 0)
                return Error(
                    ErrorCode::kInvalid, "the guest's RAM does not fit into 46 bits of physical address");
            regions.push_back({gpa, part, block, offset, false});
            gpa += part;
            offset += part;
        }
    }
    return regions;
}

} // namespace liveupdate::supervisor
