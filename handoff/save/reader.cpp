#include "handoff/save/reader.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <list>

#include "handoff/save/checksum.hpp"

namespace liveupdate::handoff::save {
namespace {

constexpr unsigned kMaxThreads = 64, kMaxDepth = 256;

struct FreeDeleter {
    void operator()(void* at) const { std::free(at); }
};

} // namespace

Reader::Reader(IoOptions options) : options_(options) {
    options_.threads = std::clamp(options_.threads, 1u, kMaxThreads);
    options_.depth = std::clamp(options_.depth, 1u, kMaxDepth);
}

Result<std::unique_ptr<Reader>> Reader::open(const std::string& path, IoOptions options) {
    std::unique_ptr<Reader> reader(new Reader(options));
    // A pipe is refused, not waited for.
    TRY_ASSIGN(reader->file_, DirectFile::open(path, O_RDONLY | O_NONBLOCK));
    TRY(reader->take_in().context(path));
    return reader;
}

Result<std::unique_ptr<Reader>> Reader::adopt(UniqueFd file, const std::string& name, IoOptions options) {
    std::unique_ptr<Reader> reader(new Reader(options));
    TRY_ASSIGN(reader->file_, DirectFile::adopt(std::move(file), name));
    TRY(reader->take_in().context(name));
    return reader;
}

Result<void> Reader::take_in() {
    struct stat status {};
    if (::fstat(file_->fd(), &status) < 0) return Error::from_errno("stat");
    if (!S_ISREG(status.st_mode)) return Error(ErrorCode::kRefused, "this is no file");
    const auto size = static_cast<uint64_t>(status.st_size);
    if (size < kPage)
        return Error(ErrorCode::kRefused, "this is no file of a saved guest: it has " + std::to_string(size) +
                                              " bytes, and its header alone would have 4096");
    TRY_ASSIGN(const std::string page, read_plain(0, kPage));
    TRY_ASSIGN(header_, decode({reinterpret_cast<const std::byte*>(page.data()), page.size()}, size));
    layout_ = header_.layout();
    TRY_ASSIGN(const std::string state, read_plain(layout_.state_at, header_.state_size));
    if (checksum(state) != header_.state_sum)
        return Error(ErrorCode::kRefused, "the state (" + std::to_string(header_.state_size) +
                                              " bytes from " + std::to_string(layout_.state_at) +
                                              ") is damaged: its checksum is wrong");
    TRY_ASSIGN(guest_, parse_saved_guest(state));
    return {};
}

Result<std::string> Reader::read_plain(uint64_t offset, uint64_t size) {
    const size_t whole = round_up(size, kPage);
    const std::unique_ptr<std::byte, FreeDeleter> copy(
        static_cast<std::byte*>(std::aligned_alloc(kPage, whole)));
    if (!copy)
        return Error(
            ErrorCode::kSystem, "there is no memory for " + std::to_string(whole) + " bytes", ENOMEM);
    uint32_t pending = 0; // outlives the queue
    IoQueue queue(*file_, 1, Engine::kCalls);
    TRY(queue.read(offset, {copy.get(), whole}, pending));
    return std::string(reinterpret_cast<const char*>(copy.get()), size);
}

Result<void> Reader::load_tables() {
    blocks_.resize(header_.blocks.size());
    for (size_t i = 0; i < blocks_.size(); ++i)
        if (header_.blocks[i].spec.place == Place::kHere) TRY(load_table(i).context(file_->path()));
    return {};
}

Result<void> Reader::load_table(size_t block) {
    const BlockHeader& header = header_.blocks[block];
    const uint64_t pages = pages_in(header.spec.size);
    const std::string where = "RAM block " + header.spec.name + ": ";
    TRY_ASSIGN(const std::string bitmap,
        read_plain(layout_.blocks[block].bitmap_at, bitmap_bytes(header.spec.size)));
    TRY_ASSIGN(
        const std::string sums, read_plain(layout_.blocks[block].sums_at, sums_bytes(header.spec.size)));
    if (checksum(bitmap + sums) != header.tables_sum)
        return Error(ErrorCode::kRefused, where + "the bitmap or the sums (from " +
                                              std::to_string(layout_.blocks[block].bitmap_at) +
                                              ") are damaged: their checksum is wrong");
    Block& out = blocks_[block];
    out.written = PageMap(pages, std::vector<uint8_t>(bitmap.begin(), bitmap.end()));
    const bool left_over = pages % 8 != 0 && static_cast<uint8_t>(bitmap.back()) >> (pages % 8) != 0;
    if (left_over || out.written.count() != header.written)
        return Error(ErrorCode::kRefused, where + "the bitmap does not fit the header");
    for (size_t at = 0; at < sums.size(); at += sizeof(uint64_t)) {
        uint64_t sum = 0;
        for (size_t i = 0; i < sizeof(sum); ++i)
            sum |= uint64_t{static_cast<uint8_t>(sums[at + i])} << (8 * i);
        out.sums.push_back(sum);
    }
    return {};
}

Result<void> Reader::read_block(size_t block, std::span<std::byte> ram) {
    const BlockSpec& spec = header_.blocks.at(block).spec;
    if (spec.place != Place::kHere || ram.size() != spec.size)
        return Error(ErrorCode::kInternal, "RAM block " + spec.name + " is not read into what is given");
    Work work(chunks_in(spec.size), options_.cancel_fd);
    return in_threads(options_.threads, work, [&] { return read_chunks(block, ram, work); });
}

// Up to `depth` chunks are on their way; the oldest is checked while the others come.
Result<void> Reader::read_chunks(size_t block, std::span<std::byte> ram, Work& work) {
    struct Coming {
        uint64_t chunk = 0;
        uint32_t pending = 0;
    };
    std::list<Coming> coming; // outlives the queue, which lowers `pending`
    IoQueue queue(*file_, options_.depth, options_.engine);
    if (options_.engine == Engine::kRing && queue.engine() != Engine::kRing) without_ring_ = true;
    const PageMap& written = blocks_[block].written;
    const auto check_oldest = [&]() -> Result<void> {
        TRY(queue.await(coming.front().pending));
        TRY(check_chunk(block, coming.front().chunk, ram.data() + coming.front().chunk * kChunk));
        coming.pop_front();
        return {};
    };
    for (uint64_t chunk = 0; work.take(chunk);) {
        Coming& now = coming.emplace_back();
        now.chunk = chunk;
        Result<void> begun;
        written.runs(pages_of_chunk(chunk, written.pages()), [&](PageRun run) {
            const auto into = ram.subspan(run.first * kPage, run.count * kPage);
            // All at once, which is cheaper than page by page on the way of the read. Only that.
            ::madvise(into.data(), into.size(), MADV_POPULATE_WRITE);
            if (begun)
                begun = queue.read(layout_.blocks[block].pages_at + run.first * kPage, into, now.pending);
        });
        TRY(begun);
        if (coming.size() >= options_.depth) TRY(check_oldest());
    }
    while (!coming.empty())
        TRY(check_oldest());
    return {};
}

Result<void> Reader::check_block(size_t block) {
    const BlockSpec& spec = header_.blocks.at(block).spec;
    if (spec.place != Place::kHere) return {};
    Work work(chunks_in(spec.size), options_.cancel_fd);
    return in_threads(options_.threads, work, [&]() -> Result<void> {
        const std::unique_ptr<std::byte, FreeDeleter> bytes(
            static_cast<std::byte*>(std::aligned_alloc(kPage, kChunk)));
        if (!bytes) return Error(ErrorCode::kSystem, "there is no memory for a chunk", ENOMEM);
        for (uint64_t chunk = 0; work.take(chunk);)
            TRY(read_chunk(block, chunk, {bytes.get(), kChunk}));
        return {};
    });
}

Result<void> Reader::read_chunk(size_t block, uint64_t chunk, std::span<std::byte> into) {
    uint32_t pending = 0; // outlives the queue
    IoQueue queue(*file_, options_.depth, options_.engine);
    const PageMap& written = blocks_.at(block).written;
    const PageRun pages = pages_of_chunk(chunk, written.pages());
    Result<void> begun;
    written.runs(pages, [&](PageRun run) {
        if (begun)
            begun = queue.read(layout_.blocks[block].pages_at + run.first * kPage,
                into.subspan((run.first - pages.first) * kPage, run.count * kPage), pending);
    });
    TRY(begun);
    TRY(queue.await(pending));
    return check_chunk(block, chunk, into.data());
}

Result<void> Reader::check_chunk(size_t block, uint64_t chunk, const std::byte* bytes) const {
    const Block& b = blocks_[block];
    const PageRun pages = pages_of_chunk(chunk, b.written.pages());
    if (sum_of_pages(b.written, pages, bytes) == b.sums[chunk]) return {};
    return Error(ErrorCode::kRefused, file_->path() + ": RAM block " + header_.blocks[block].spec.name +
                                          ", chunk " + std::to_string(chunk) + " (1 MiB from " +
                                          std::to_string(layout_.blocks[block].pages_at + chunk * kChunk) +
                                          ") is damaged: its checksum is wrong");
}

std::vector<std::string> Reader::notes() const {
    std::vector<std::string> notes;
    if (!file_->direct())
        notes.push_back("the file system of " + file_->path() +
                        " does not take O_DIRECT; RAM was read through the host's page cache");
    if (without_ring_) notes.push_back("io_uring cannot be used here; RAM was read call by call");
    return notes;
}

} // namespace liveupdate::handoff::save
