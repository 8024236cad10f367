// Reading of kernel and firmware images from fds that the supervisor opened. Only pread: a file that shrinks
// while it is read gives an error, where a mapping would give SIGBUS.
#pragma once

#include <cstdint>
#include <span>

#include "handoff/base/result.hpp"

namespace liveupdate::vmm {

// The size in bytes of a regular file (memfds included); anything else is refused.
Result<uint64_t> image_size(int fd);

// Fills `into` from `offset` on; a file that ends before is an error.
Result<void> read_image(int fd, uint64_t offset, std::span<uint8_t> into);

} // namespace liveupdate::vmm
