// Memory from which O_DIRECT reads and writes.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <string>

#include "handoff/base/result.hpp"
#include "handoff/save/layout.hpp"

namespace liveupdate::handoff::save {

struct FreePages {
    void operator()(std::byte* at) const { std::free(at); }
};
using PageBuffer = std::unique_ptr<std::byte, FreePages>;

// Not zeroed; `size` in bytes is a multiple of kPage.
inline Result<PageBuffer> page_buffer(size_t size) {
    PageBuffer pages(static_cast<std::byte*>(std::aligned_alloc(kPage, size)));
    if (!pages)
        return Error(ErrorCode::kSystem, "there is no memory for " + std::to_string(size) + " bytes", ENOMEM);
    return pages;
}

} // namespace liveupdate::handoff::save
