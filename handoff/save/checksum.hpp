// XXH64 with seed 0, which all of the format is checked by.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "handoff/save/page_map.hpp"

namespace liveupdate::handoff::save {

uint64_t checksum(std::string_view bytes);

// A chunk's sum: of those of its `pages` that are in `written`, one after the other; 0 when none is. `bytes`
// begins with the first of the pages.
uint64_t sum_of_pages(const PageMap& written, PageRun pages, const std::byte* bytes);

} // namespace liveupdate::handoff::save
