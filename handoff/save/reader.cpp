#include "handoff/save/reader.hpp"

#include <sys/mman.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <list>

#include "handoff/base/fd.hpp"
#include "handoff/save/checksum.hpp"
#include "handoff/save/nbd_source.hpp"
#include "handoff/save/nbd_uri.hpp"
#include "handoff/save/page_buffer.hpp"

namespace liveupdate::handoff::save {
namespace {

constexpr unsigned kMaxThreads = 64, kMaxDepth = 256;

// Where chunks are read to, by one thread. RAM itself, where it is mapped:
struct InPlace {
    std::span<std::byte> ram;

    std::byte* room_for(uint64_t chunk) { return ram.data() + chunk * kChunk; }
    // All at once, which is cheaper than page by page on the way of the read. Only that.
    void prepare(std::span<std::byte> run) const { ::madvise(run.data(), run.size(), MADV_POPULATE_WRITE); }
    Result<void> keep(const PageMap&, uint64_t, std::byte*) { return {}; }
};

// Buffers from which what has been checked is written to RAM's file.
class ThroughBuffers {
public:
    static Result<ThroughBuffers> make(int file, std::string_view block, unsigned chunks) {
        ThroughBuffers out;
        out.file_ = file;
        out.block_ = block;
        TRY_ASSIGN(out.buffers_, page_buffer(chunks * kChunk));
        for (unsigned i = 0; i < chunks; ++i)
            out.free_.push_back(out.buffers_.get() + i * kChunk);
        return out;
    }
    // The one that was used last: it may still be in a CPU's cache.
    std::byte* room_for(uint64_t) {
        std::byte* const at = free_.back();
        free_.pop_back();
        return at;
    }
    void prepare(std::span<std::byte>) const {}
    Result<void> keep(const PageMap& written, uint64_t chunk, std::byte* at) {
        free_.push_back(at);
        const PageRun pages = pages_of_chunk(chunk, written.pages());
        Result<void> kept;
        written.runs(pages, [&](PageRun run) {
            if (kept)
                kept = fd::pwrite_all(
                    file_, at + (run.first - pages.first) * kPage, run.count * kPage, run.first * kPage);
        });
        if (!kept) return Error(kept.error()).context("RAM block " + std::string(block_));
        return {};
    }

private:
    int file_ = -1;
    std::string_view block_; // its name, which outlives this
    PageBuffer buffers_;
    std::vector<std::byte*> free_;
};

} // namespace

Reader::Reader(IoOptions options) : options_(options) {
    options_.threads = std::clamp(options_.threads, 1u, kMaxThreads);
    options_.depth = std::clamp(options_.depth, 1u, kMaxDepth);
}

Result<std::unique_ptr<Reader>> Reader::open(const std::string& where, IoOptions options) {
    std::unique_ptr<Reader> reader(new Reader(options));
    if (is_nbd_uri(where)) {
        TRY_ASSIGN(reader->source_, NbdSource::open(where, {options.silence, options.cancel_fd}));
    } else {
        TRY_ASSIGN(reader->source_, FileSource::open(where));
    }
    TRY(reader->take_in().context(where));
    return reader;
}

Result<std::unique_ptr<Reader>> Reader::adopt(UniqueFd file, const std::string& name, IoOptions options) {
    std::unique_ptr<Reader> reader(new Reader(options));
    TRY_ASSIGN(reader->source_, FileSource::adopt(std::move(file), name));
    TRY(reader->take_in().context(name));
    return reader;
}

Result<void> Reader::take_in() {
    TRY_ASSIGN(const uint64_t size, source_->size());
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
    TRY_ASSIGN(const PageBuffer copy, page_buffer(whole));
    uint32_t pending = 0; // outlives the queue
    TRY_ASSIGN(const auto queue, source_->queue(1, Engine::kCalls));
    TRY(queue->read(offset, {copy.get(), whole}, pending));
    TRY(queue->await(pending));
    return std::string(reinterpret_cast<const char*>(copy.get()), size);
}

Result<void> Reader::load_tables() {
    blocks_.resize(header_.blocks.size());
    for (size_t i = 0; i < blocks_.size(); ++i)
        if (header_.blocks[i].spec.place == Place::kHere) TRY(load_table(i).context(source_->name()));
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
    return in_threads(options_.threads, work, [&] { return read_chunks(block, InPlace{ram}, work); });
}

Result<void> Reader::read_block(size_t block, int file, RamKind kind) {
    const BlockSpec& spec = header_.blocks.at(block).spec;
    if (spec.place != Place::kHere)
        return Error(ErrorCode::kInternal, "RAM block " + spec.name + " is not in " + source_->name());
    if (kind == RamKind::kHugetlbfs) { // takes no write(2)
        TRY_ASSIGN(const auto ram, SharedMapping::map(file, 0, spec.size, MapMode::kShared));
        return read_block(block, ram.bytes());
    }
    Work work(chunks_in(spec.size), options_.cancel_fd);
    return in_threads(options_.threads, work, [&]() -> Result<void> {
        TRY_ASSIGN(ThroughBuffers into, ThroughBuffers::make(file, spec.name, most_chunks(options_.depth)));
        return read_chunks(block, std::move(into), work);
    });
}

// The oldest chunk is checked while others come.
template <typename Target>
Result<void> Reader::read_chunks(size_t block, Target target, Work& work) {
    struct Coming {
        uint64_t chunk = 0;
        std::byte* at = nullptr;
        uint32_t requests = 0;
        uint32_t pending = 0; // of them
    };
    std::list<Coming> coming; // outlives the queue, which lowers `pending`
    TRY_ASSIGN(const auto queue, source_->queue(options_.depth, options_.engine));
    const PageMap& written = blocks_[block].written;
    size_t requests = 0;
    const auto take_oldest = [&]() -> Result<void> {
        const Coming& oldest = coming.front();
        TRY(queue->await(oldest.pending));
        TRY(check_chunk(block, oldest.chunk, oldest.at));
        TRY(target.keep(written, oldest.chunk, oldest.at));
        requests -= oldest.requests;
        coming.pop_front();
        return {};
    };
    for (uint64_t chunk = 0; work.take(chunk);) {
        const PageRun pages = pages_of_chunk(chunk, written.pages());
        if (!written.any(pages)) {
            TRY(check_chunk(block, chunk, nullptr)); // has a sum nevertheless
            continue;
        }
        Coming& now = coming.emplace_back();
        now.chunk = chunk;
        now.at = target.room_for(chunk);
        Result<void> begun;
        written.runs(pages, [&](PageRun run) {
            const std::span into(now.at + (run.first - pages.first) * kPage, run.count * kPage);
            target.prepare(into);
            ++now.requests;
            if (begun)
                begun = queue->read(layout_.blocks[block].pages_at + run.first * kPage, into, now.pending);
        });
        TRY(begun);
        requests += now.requests;
        while (are_enough(coming.size(), requests - coming.front().requests, options_.depth))
            TRY(take_oldest());
    }
    while (!coming.empty())
        TRY(take_oldest());
    return {};
}

Result<void> Reader::check_block(size_t block) {
    const BlockSpec& spec = header_.blocks.at(block).spec;
    if (spec.place != Place::kHere) return {};
    Work work(chunks_in(spec.size), options_.cancel_fd);
    return in_threads(options_.threads, work, [&]() -> Result<void> {
        TRY_ASSIGN(const PageBuffer bytes, page_buffer(kChunk));
        for (uint64_t chunk = 0; work.take(chunk);)
            TRY(read_chunk(block, chunk, {bytes.get(), kChunk}));
        return {};
    });
}

Result<void> Reader::read_chunk(size_t block, uint64_t chunk, std::span<std::byte> into) {
    uint32_t pending = 0; // outlives the queue
    TRY_ASSIGN(const auto queue, source_->queue(options_.depth, options_.engine));
    const PageMap& written = blocks_.at(block).written;
    const PageRun pages = pages_of_chunk(chunk, written.pages());
    Result<void> begun;
    written.runs(pages, [&](PageRun run) {
        if (begun)
            begun = queue->read(layout_.blocks[block].pages_at + run.first * kPage,
                into.subspan((run.first - pages.first) * kPage, run.count * kPage), pending);
    });
    TRY(begun);
    TRY(queue->await(pending));
    return check_chunk(block, chunk, into.data());
}

Result<void> Reader::check_chunk(size_t block, uint64_t chunk, const std::byte* bytes) const {
    const Block& b = blocks_[block];
    const PageRun pages = pages_of_chunk(chunk, b.written.pages());
    if (sum_of_pages(b.written, pages, bytes) == b.sums[chunk]) return {};
    return Error(ErrorCode::kRefused, source_->name() + ": RAM block " + header_.blocks[block].spec.name +
                                          ", chunk " + std::to_string(chunk) + " (1 MiB from " +
                                          std::to_string(layout_.blocks[block].pages_at + chunk * kChunk) +
                                          ") is damaged: its checksum is wrong");
}

} // namespace liveupdate::handoff::save
