// The first page of the file of a saved guest.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "handoff/save/layout.hpp"

namespace liveupdate::handoff::save {

struct BlockHeader {
    BlockSpec spec;
    // Of blocks in the file:
    uint64_t tables_sum = 0; // of bitmap and sums
    uint64_t written = 0;    // pages
};

struct Header {
    std::vector<BlockHeader> blocks;
    uint64_t state_size = 0; // bytes
    uint64_t state_sum = 0;

    std::vector<BlockSpec> specs() const;
    Layout layout() const { return Layout::of(specs()); }
    // The page's own checksum. It covers those of state, bitmaps and sums of RAM: of one sum, one save.
    uint64_t sum() const;
};

using HeaderPage = std::array<std::byte, kPage>;

HeaderPage encode(const Header& header);

// From anybody: `file_size` is what fstat says. kRefused in words when it is no saved guest, damaged, or of
// another size than it says; kUnsupported when it is of a later version.
Result<Header> decode(std::span<const std::byte> page, uint64_t file_size);

} // namespace liveupdate::handoff::save
