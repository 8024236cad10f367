// One bit for each page of a RAM block, as it lies in the file.
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>
#include <vector>

#include "handoff/save/layout.hpp"

namespace liveupdate::handoff::save {

// A run of pages, by number.
struct PageRun {
    uint64_t first = 0;
    uint64_t count = 0;
};

class PageMap {
public:
    PageMap() = default;
    explicit PageMap(uint64_t pages) : pages_(pages), bits_((pages + 7) / 8) {}
    // Of a block of `bytes`, from what lies in a file.
    PageMap(uint64_t pages, std::vector<uint8_t> bits) : pages_(pages), bits_(std::move(bits)) {}

    uint64_t pages() const { return pages_; }
    bool test(uint64_t page) const { return (bits_[page / 8] >> (page % 8) & 1) != 0; }
    // Threads may change bits of different chunks at once: these share no byte.
    void set(uint64_t page) { bits_[page / 8] = static_cast<uint8_t>(bits_[page / 8] | 1u << (page % 8)); }
    void clear(uint64_t page) {
        bits_[page / 8] = static_cast<uint8_t>(bits_[page / 8] & ~(1u << (page % 8)));
    }
    void set_run(PageRun run) {
        for (uint64_t i = 0; i < run.count; ++i)
            set(run.first + i);
    }
    uint64_t count() const {
        uint64_t n = 0;
        for (const uint8_t byte : bits_)
            n += static_cast<uint64_t>(std::popcount(byte));
        return n;
    }
    bool any(PageRun within) const {
        for (uint64_t i = 0; i < within.count; ++i)
            if (test(within.first + i)) return true;
        return false;
    }
    // The runs of set bits in `within`, in ascending order.
    template <typename Take>
    void runs(PageRun within, Take take) const {
        const uint64_t end = within.first + within.count;
        for (uint64_t page = within.first; page < end;) {
            if (!test(page)) {
                ++page;
                continue;
            }
            PageRun run{page, 0};
            while (page < end && test(page)) {
                ++page;
                ++run.count;
            }
            take(run);
        }
    }
    std::string_view bytes() const { return {reinterpret_cast<const char*>(bits_.data()), bits_.size()}; }

private:
    uint64_t pages_ = 0;
    std::vector<uint8_t> bits_;
};

// The pages of one chunk of a block of `pages`.
constexpr PageRun pages_of_chunk(uint64_t chunk, uint64_t pages) {
    const uint64_t first = chunk * kPagesPerChunk;
    return {first, pages - first < kPagesPerChunk ? pages - first : kPagesPerChunk};
}

} // namespace liveupdate::handoff::save
