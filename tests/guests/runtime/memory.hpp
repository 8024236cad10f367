#pragma once
/// RAM as the loader describes it, and its mapping.
#include <cstddef>
#include <cstdint>

namespace tests::guests {

struct MemoryRange {
    std::uint64_t begin; ///< guest physical, bytes
    std::uint64_t end;   ///< exclusive
};

/// Reads hvm_start_info: keeps the memory map and the command line, whose memory may be reused
/// afterwards. Once, on vCPU 0, first of all. Reports kBadStartInfo if there is no memory map.
void read_start_info();

/// RAM ranges of the memory map, in its order. `count` is set to their number.
const MemoryRange* ram_ranges(std::size_t& count);

/// Maps RAM above 4 GiB, and with `small_pages` replaces all RAM's mapping by 4 KiB pages. New
/// tables come from RAM behind the image. Once, on vCPU 0, before other vCPUs start.
void map_all_ram(bool small_pages);

/// Makes sure that one guest physical page that is not RAM is mapped. When map_all_ram() may.
void map_page(std::uint64_t gpa);

/// First byte behind the image and its page tables.
std::uint64_t image_limit();

} // namespace tests::guests
