#include "handoff/write_map.hpp"

#include <algorithm>
#include <cstring>

namespace liveupdate::handoff {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kPagesPerWord = 64;

// Each block begins at a whole word, which is what KVM fills.
std::vector<uint64_t> offsets_of(const Manifest& manifest) {
    std::vector<uint64_t> offsets = {0};
    for (const RamBlock& block : manifest.blocks)
        offsets.push_back(offsets.back() + (block.size / kPage + kPagesPerWord - 1) / kPagesPerWord * 8);
    return offsets;
}

uint64_t file_size(const std::vector<uint64_t>& offsets) {
    return std::max(kPage, (offsets.back() + kPage - 1) / kPage * kPage);
}

} // namespace

Result<UniqueFd> WriteMap::create(const Manifest& manifest) {
    return create_sealed_memfd("liveupdate-writes", file_size(offsets_of(manifest)));
}

Result<WriteMap> WriteMap::map(int fd, const Manifest& manifest) {
    auto offsets = offsets_of(manifest);
    TRY_ASSIGN(const uint64_t size, sealed_size(fd, "the map of writes"));
    if (size != file_size(offsets))
        return Error(ErrorCode::kRefused, "the map of writes has " + std::to_string(size) +
                                              " bytes; the guest's RAM needs " +
                                              std::to_string(file_size(offsets)));
    TRY_ASSIGN(SharedMapping mapping, SharedMapping::map(fd, 0, size, MapMode::kShared));
    return WriteMap(std::move(mapping), std::move(offsets));
}

std::span<uint8_t> WriteMap::of(size_t block) const {
    return {
        reinterpret_cast<uint8_t*>(mapping_.data()) + offsets_[block], offsets_[block + 1] - offsets_[block]};
}

void WriteMap::clear() const {
    std::memset(mapping_.data(), 0, mapping_.size());
}

} // namespace liveupdate::handoff
