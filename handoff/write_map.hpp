// Which pages of a guest's RAM have been written: one bit a page, block after block, in memory that a VMM
// fills and a supervisor reads. Each side knows its size from the manifest.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "handoff/manifest.hpp"
#include "handoff/shared_memory.hpp"

namespace liveupdate::handoff {

class WriteMap {
public:
    static Result<UniqueFd> create(const Manifest& manifest);
    // Refuses a memfd that is unsealed or whose size does not fit `manifest`.
    static Result<WriteMap> map(int fd, const Manifest& manifest);

    // Of one block, by its index in the manifest; bit n mod 8 of byte n / 8 is page n.
    std::span<uint8_t> of(size_t block) const;
    void clear() const;

private:
    WriteMap(SharedMapping mapping, std::vector<uint64_t> offsets)
        : mapping_(std::move(mapping)), offsets_(std::move(offsets)) {}

    SharedMapping mapping_;
    std::vector<uint64_t> offsets_; // one more than there are blocks
};

} // namespace liveupdate::handoff
