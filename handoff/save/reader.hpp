// Reads a saved guest out of its file or an NBD export, which may be anything.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "handoff/ram_block.hpp"
#include "handoff/save/header.hpp"
#include "handoff/save/page_map.hpp"
#include "handoff/save/parallel.hpp"
#include "handoff/save/saved_guest.hpp"
#include "handoff/save/source.hpp"

namespace liveupdate::handoff::save {

class Reader {
public:
    // Opens and checks header and state. Errors name the file: kRefused in words when it is not a whole saved
    // guest, kUnsupported when its version is later than this build's. `where`: a path, or the URI of an NBD
    // export (nbd_uri.hpp).
    static Result<std::unique_ptr<Reader>> open(const std::string& where, IoOptions options = {});

    // The same of a file that somebody else has opened for reading; `name` is what errors call it.
    static Result<std::unique_ptr<Reader>> adopt(
        UniqueFd file, const std::string& name, IoOptions options = {});

    const Header& header() const { return header_; }
    const proto::SavedGuest& guest() const { return guest_; }
    // Of the blocks in the file: which pages there are, and their sums. Needs memory by the size of RAM; so
    // after somebody has compared that with what he expects.
    Result<void> load_tables();
    const PageMap& written(size_t block) const { return blocks_[block].written; }

    // After load_tables(): reads all of a block into `ram`, which is zero, page-aligned and of the block's
    // size, and checks each chunk. On failure `ram` holds anything. Blocks; threads of its own.
    Result<void> read_block(size_t block, std::span<std::byte> ram);

    // The same into RAM's file, by write(2) where its kind takes that: page tables would cost more to fill
    // and to empty than a copy does.
    Result<void> read_block(size_t block, int file, RamKind kind);

    // The same of one chunk of 1 MiB, into `into`, which has room for all of it; what is not written() is
    // left as it is there. Any number of threads at once.
    Result<void> read_chunk(size_t block, uint64_t chunk, std::span<std::byte> into);

    // After load_tables(): reads all of a block that is in the file and checks each chunk, keeping nothing.
    // Blocks; threads of its own.
    Result<void> check_block(size_t block);

    // Until something is read again, an NBD server has no connection of this reader.
    void close_idle() { source_->close_idle(); }

    int fd() const { return source_->fd(); } // of a file; -1
    // What did not go as it should have, in words for a user.
    std::vector<std::string> notes() const { return source_->notes(); }

private:
    struct Block {
        PageMap written;
        std::vector<uint64_t> sums;
    };
    explicit Reader(IoOptions options);
    Result<void> take_in();
    Result<std::string> read_plain(uint64_t offset, uint64_t size);
    Result<void> load_table(size_t block);
    template <typename Target>
    Result<void> read_chunks(size_t block, Target target, Work& work);
    Result<void> check_chunk(size_t block, uint64_t chunk, const std::byte* bytes) const;

    IoOptions options_;
    std::unique_ptr<Source> source_;
    Header header_;
    Layout layout_;
    proto::SavedGuest guest_;
    std::vector<Block> blocks_;
};

} // namespace liveupdate::handoff::save
