// A RAM block: one file whose pages are guest RAM. Sizes come from fstat, never from what a peer says.
#pragma once

#include <cstdint>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"
#include "handoff/shared_memory.hpp"

namespace liveupdate::handoff {

enum class RamKind {
    kMemfd,     // anonymous, sealed against growing and shrinking
    kTmpfs,     // an unlinked file on a tmpfs
    kHugetlbfs, // an unlinked file on a hugetlbfs, or a sealed memfd of huge pages
    kFile,      // an unlinked file on a disk's file system
};

std::string_view to_string(RamKind kind);
// Whether a page of it can come when it is first touched (userfaultfd).
constexpr bool comes_by_pages(RamKind kind) {
    return kind == RamKind::kMemfd || kind == RamKind::kTmpfs;
}

struct RamBlock {
    std::string name; // at most 32 of [a-z0-9-]; the fd crosses under this name
    RamKind kind = RamKind::kMemfd;
    uint64_t size = 0; // bytes
    UniqueFd file;
};

// Creates a zeroed block. `directory` is where files are made (and unlinked at once); an empty one means a
// memfd of huge pages for kHugetlbfs and /dev/shm for kTmpfs, and is refused for kFile.
Result<RamBlock> create_ram_block(
    const std::string& name, RamKind kind, uint64_t size, const std::string& directory = "");

// Sets the space of a block on a disk aside: a page that a guest touches when the disk has become full would
// end it. Nothing is to be done for other kinds.
Result<void> set_space_aside(const RamBlock& block);

// Takes in a block from a peer: refuses an fd of another kind than said, without seals (memfd), or of
// another size than `claimed_size`.
Result<RamBlock> adopt_ram_block(std::string name, RamKind kind, uint64_t claimed_size, UniqueFd file);

// A part of a file that has pages, in bytes from the file's start.
struct DataRange {
    uint64_t offset = 0;
    uint64_t size = 0;
};

// The parts of [offset, offset + size) that have pages: what the guest has touched. A file system that cannot
// tell counts as data throughout.
std::vector<DataRange> data_ranges(int fd, uint64_t offset, uint64_t size);

// Fills the page tables of a mapping of `block` from `offset` on, so that the guest does not pay for first
// touches: MADV_POPULATE_WRITE, or _READ for what lies on a disk, in steps so that memory management is never
// held for long. Only where the file has pages: an update must not make the host back RAM that the guest has
// never used. Returns early, without an error, once `stop` is requested.
Result<void> populate(
    const SharedMapping& mapping, const RamBlock& block, uint64_t offset, const std::stop_token& stop = {});

} // namespace liveupdate::handoff
