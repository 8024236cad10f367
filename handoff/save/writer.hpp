// Writes the file of a saved guest: beside, and renamed when it is whole.
//
//   create ──► write_pages, as often as needed ──► finish ──► publish
//      └──────────────── destruction: what was written is removed
#pragma once

#include <sys/types.h>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "handoff/save/header.hpp"
#include "handoff/save/page_map.hpp"
#include "handoff/save/parallel.hpp"

namespace liveupdate::handoff::save {

class Writer {
public:
    // In `directory`, which exists. kBusy when somebody else writes a guest there. Readable by its owner
    // only: all the guest's secrets are in it.
    static Result<std::unique_ptr<Writer>> create(
        const std::string& directory, const std::vector<BlockSpec>& blocks, IoOptions options = {});
    ~Writer();
    Writer(const Writer&) = delete;
    Writer& operator=(const Writer&) = delete;

    // Writes the pages of `which` as they are in `ram`, which is all of the block, page-aligned. Zero pages
    // become holes. May be called again: pages of a chunk that have not changed since they were written must
    // still be as they were, or come in a later call. Blocks; threads of its own.
    Result<void> write_pages(size_t block, std::span<const std::byte> ram, const PageMap& which);
    // The state, and all that makes the file whole; synced.
    Result<void> finish(std::string_view state);
    // After finish(): gives the file its name, in place of a former one; synced. On failure the former one is
    // as it was.
    Result<void> publish();

    // After finish(): the guest is nowhere else, so the file stays, also without its name.
    void keep() { stays_ = true; }

    const std::string& path() const { return path_; } // after publish()
    const std::string& new_path() const { return new_path_; }
    uint64_t pages_in_file() const;                                  // that are not zero
    uint64_t bytes_written() const { return bytes_written_.load(); } // pages, each time that it was written
    // What did not go as it should have, in words for a user; empty when all did.
    std::vector<std::string> notes() const;

private:
    struct Block {
        BlockSpec spec;
        BlockLayout layout;
        PageMap written;
        std::vector<uint64_t> sums;
        std::vector<uint8_t> sum_due; // of each chunk: what is in the file is summed by finish()
    };
    struct Pass; // one call of write_pages()
    struct Going;

    Writer(std::string directory, const std::vector<BlockSpec>& blocks, IoOptions options);
    Result<void> open();
    Result<void> write_chunk(Pass& pass, IoQueue& queue, Going& going);
    Result<void> sum_what_is_due();
    Result<void> make_hole(const Block& block, PageRun run);
    Result<uint64_t> write_tables(const Block& block);
    Result<void> write_plain(uint64_t offset, std::string_view bytes);
    Result<void> sync();

    std::string directory_, path_, new_path_;
    IoOptions options_;
    std::unique_ptr<DirectFile> file_;
    UniqueFd former_; // the file that this one has taken the name of
    std::vector<Block> blocks_;
    uint64_t state_at_ = 0;
    std::atomic<uint64_t> bytes_written_{0};
    std::atomic<bool> without_ring_{false};
    bool direct_at_first_ = false;
    bool stays_ = false;
};

} // namespace liveupdate::handoff::save
