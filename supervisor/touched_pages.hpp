// Which pages of a RAM block there are.
#pragma once

#include <cstdint>

#include "handoff/save/page_map.hpp"

namespace liveupdate::supervisor {

// Of a block of `size` bytes whose file is borrowed. What the guest has never touched is not in it: to look
// at that would allocate it.
handoff::save::PageMap touched_pages(int file, uint64_t size);

} // namespace liveupdate::supervisor
