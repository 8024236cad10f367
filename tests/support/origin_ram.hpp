// RAM that comes from an origin when it is touched, seen from outside. A test must not touch it in a mapping
// of its own before the VMM has: it would find, and leave there, zeros.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"

namespace liveupdate::tests {

// The file of a guest's RAM block "ram0", out of a process that has it open.
Result<UniqueFd> ram_file_of(pid_t pid);

// Whether the block has the page at `offset` (bytes), and how many bytes it has in all.
bool has_page(int ram, uint64_t offset);
uint64_t bytes_in(int ram);

// Bytes of the block as they are now; zeros where it has no page, which it does not get either.
std::string peek(int ram, uint64_t offset, size_t size);

// Where the VMM `pid` has mapped [offset, offset + size) of the block.
Result<uint64_t> address_in(pid_t vmm, uint64_t offset, uint64_t size);

// As the guest would: reads [offset, offset + size) of the block where the VMM `pid` has mapped it, so that
// its pages come. Needs leave to trace the VMM.
Result<std::string> touch(pid_t vmm, uint64_t offset, uint64_t size);

} // namespace liveupdate::tests
