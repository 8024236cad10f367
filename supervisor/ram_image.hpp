// The RAM of a template whose VMM maps a file as it is: the block byte by byte, with holes where it is zero,
// and a checksum of each MiB, which are kept elsewhere: XXH64 of all its bytes, 0 when all of them are zero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "handoff/base/result.hpp"
#include "handoff/save/page_map.hpp"

namespace liveupdate::supervisor {

// Makes the file, which must not be there; synced. `ram` is all of the block, page-aligned; of it the pages
// of `which` are looked at. The sums. On failure there is no file.
Result<std::vector<uint64_t>> write_ram_image(const std::string& path, std::span<const std::byte> ram,
    const handoff::save::PageMap& which, int cancel_fd);

// Of a file that somebody else has written, which has whole pages; it is synced. The sums.
Result<std::vector<uint64_t>> sum_ram_image(const std::string& path, uint64_t size, int cancel_fd);

// Reads all of the image of `size` bytes and checks it, into `ram`, which is zero and of that size; an empty
// one keeps nothing. kRefused in words, with `path`, when it is not what was written.
Result<void> read_ram_image(
    const std::string& path, uint64_t size, const std::vector<uint64_t>& sums, std::span<std::byte> ram);

} // namespace liveupdate::supervisor
