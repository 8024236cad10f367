// Where what lies in the file of a saved guest: docs/save-format.md. All of it follows from the sizes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "handoff/base/result.hpp"

namespace liveupdate::handoff::save {

inline constexpr uint32_t kFormatVersion = 1;
inline constexpr uint64_t kPage = 4096;
inline constexpr uint64_t kChunk = uint64_t{1} << 20;
inline constexpr uint64_t kPagesPerChunk = kChunk / kPage;
inline constexpr size_t kMaxBlocks = 32;
inline constexpr size_t kMaxNameBytes = 32;
inline constexpr uint64_t kMaxBlockBytes = uint64_t{1} << 46;
inline constexpr uint64_t kMaxStateBytes = uint64_t{64} << 20;

// The file in a folder of a saved guest, and what it is called until it is whole.
inline constexpr std::string_view kFileName = "guest.save";
inline constexpr std::string_view kNewFileName = "guest.save.new";

enum class Place : uint32_t {
    kHere = 1,   // the block's pages are in this file
    kBeside = 2, // the block is the file of its name in the same folder
};

struct BlockSpec {
    std::string name;
    uint64_t size = 0; // bytes
    Place place = Place::kHere;
    bool operator==(const BlockSpec&) const = default;
};

// kRefused in words: count, names, sizes; two of one name.
Result<void> check_blocks(const std::vector<BlockSpec>& blocks);

constexpr uint64_t round_up(uint64_t n, uint64_t to) {
    return (n + to - 1) / to * to;
}
constexpr uint64_t pages_in(uint64_t bytes) {
    return bytes / kPage;
}
constexpr uint64_t chunks_in(uint64_t bytes) {
    return round_up(bytes, kChunk) / kChunk;
}
constexpr uint64_t bitmap_bytes(uint64_t bytes) {
    return round_up(pages_in(bytes), 8) / 8;
}
constexpr uint64_t sums_bytes(uint64_t bytes) {
    return chunks_in(bytes) * sizeof(uint64_t);
}

// Offsets in the file, in bytes.
struct BlockLayout {
    uint64_t bitmap_at = 0; // all 0 for a block beside
    uint64_t sums_at = 0;
    uint64_t pages_at = 0;
};

struct Layout {
    std::vector<BlockLayout> blocks;
    uint64_t state_at = 0;

    // Of blocks that check_blocks() accepts.
    static Layout of(const std::vector<BlockSpec>& blocks);
    uint64_t file_size(uint64_t state_size) const { return state_at + round_up(state_size, kPage); }
};

} // namespace liveupdate::handoff::save
