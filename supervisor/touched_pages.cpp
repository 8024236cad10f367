#include "supervisor/touched_pages.hpp"

#include <algorithm>

#include "handoff/ram_block.hpp"

namespace liveupdate::supervisor {

using handoff::save::kPage;
using handoff::save::PageMap;

PageMap touched_pages(int file, uint64_t size) {
    PageMap pages(handoff::save::pages_in(size));
    for (const handoff::DataRange& range : handoff::data_ranges(file, 0, size)) {
        const uint64_t first = range.offset / kPage;
        const uint64_t end = (range.offset + range.size + kPage - 1) / kPage;
        pages.set_run({first, std::min(end, pages.pages()) - first});
    }
    return pages;
}

} // namespace liveupdate::supervisor
