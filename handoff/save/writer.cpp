#include "handoff/save/writer.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <list>

#include "handoff/base/fd.hpp"
#include "handoff/save/checksum.hpp"
#include "handoff/save/page_buffer.hpp"

namespace liveupdate::handoff::save {
namespace {

constexpr unsigned kMaxThreads = 64, kMaxDepth = 256;

bool is_zero(const std::byte* page) {
    constexpr size_t kFirst = 16;
    static constexpr std::byte kZeros[kFirst] = {};
    return std::memcmp(page, kZeros, kFirst) == 0 && std::memcmp(page, page + kFirst, kPage - kFirst) == 0;
}

} // namespace

struct Writer::Pass {
    Block& block;
    const std::byte* ram;
    const PageMap& which;
    uint64_t sum(uint64_t chunk) const {
        const PageRun pages = pages_of_chunk(chunk, block.written.pages());
        return sum_of_pages(block.written, pages, ram + pages.first * kPage);
    }
};

// A chunk that is on its way to the file. The oldest is summed once more while others go.
struct Writer::Going {
    uint64_t chunk = 0;
    uint32_t requests = 0;
    uint32_t pending = 0; // of them
    bool summed = false;  // before it was written, all of it from RAM
};

Writer::Writer(std::string directory, const std::vector<BlockSpec>& blocks, IoOptions options)
    : directory_(std::move(directory)), path_(directory_ + "/" + std::string(kFileName)),
      new_path_(directory_ + "/" + std::string(kNewFileName)), options_(options) {
    options_.threads = std::clamp(options_.threads, 1u, kMaxThreads);
    options_.depth = std::clamp(options_.depth, 1u, kMaxDepth);
    Layout layout = Layout::of(blocks);
    state_at_ = layout.state_at;
    for (size_t i = 0; i < blocks.size(); ++i) {
        Block& block = blocks_.emplace_back();
        block.spec = blocks[i];
        block.layout = layout.blocks[i];
        if (block.spec.place != Place::kHere) continue;
        block.written = PageMap(pages_in(block.spec.size));
        block.sums.resize(chunks_in(block.spec.size));
        block.sum_due.resize(chunks_in(block.spec.size));
    }
}

Result<std::unique_ptr<Writer>> Writer::create(
    const std::string& directory, const std::vector<BlockSpec>& blocks, IoOptions options) {
    TRY(check_blocks(blocks));
    std::unique_ptr<Writer> writer(new Writer(directory, blocks, options));
    TRY(writer->open());
    return writer;
}

// Whoever has the lock on what the path leads to is the only one who writes there.
Result<void> Writer::open() {
    for (;;) {
        TRY_ASSIGN(auto file, DirectFile::open(new_path_, O_RDWR | O_CREAT | O_NOFOLLOW, 0600));
        if (::flock(file->fd(), LOCK_EX | LOCK_NB) < 0) {
            if (errno != EWOULDBLOCK) return Error::from_errno("lock " + new_path_);
            return Error(ErrorCode::kBusy, "somebody else is saving a guest into " + directory_ + "; wait");
        }
        struct stat opened {
        }, named{};
        if (::fstat(file->fd(), &opened) < 0) return Error::from_errno("stat " + new_path_);
        if (::lstat(new_path_.c_str(), &named) < 0 || named.st_ino != opened.st_ino ||
            named.st_dev != opened.st_dev)
            continue; // renamed by the former holder of the lock
        file_ = std::move(file);
        break;
    }
    direct_at_first_ = file_->direct();
    // What a crash has left there goes; all that is not written is a hole.
    if (::ftruncate(file_->fd(), 0) < 0 || ::ftruncate(file_->fd(), static_cast<off_t>(state_at_)) < 0)
        return Error::from_errno("size " + new_path_ + " to " + std::to_string(state_at_) + " bytes");
    return {};
}

Writer::~Writer() {
    if (file_ && !stays_) ::unlink(new_path_.c_str());
}

Result<void> Writer::write_pages(size_t block, std::span<const std::byte> ram, const PageMap& which) {
    Block& b = blocks_.at(block);
    if (b.spec.place != Place::kHere || ram.size() != b.spec.size || which.pages() != b.written.pages())
        return Error(ErrorCode::kInternal, "RAM block " + b.spec.name + " is not what it was said to be");
    Pass pass{b, ram.data(), which};
    Work work(chunks_in(b.spec.size), options_.cancel_fd);
    return in_threads(options_.threads, work, [&]() -> Result<void> {
        std::list<Going> going; // outlives the queue, which lowers `pending`
        IoQueue queue(*file_, options_.depth, options_.engine);
        if (options_.engine == Engine::kRing && queue.engine() != Engine::kRing) without_ring_ = true;
        size_t requests = 0;
        const auto look_at_oldest = [&]() -> Result<void> {
            const Going& oldest = going.front();
            TRY(queue.await(oldest.pending));
            if (oldest.summed && pass.sum(oldest.chunk) != b.sums[oldest.chunk]) b.sum_due[oldest.chunk] = 1;
            requests -= oldest.requests;
            going.pop_front();
            return {};
        };
        for (uint64_t chunk = 0; work.take(chunk);) {
            TRY(write_chunk(pass, queue, going.emplace_back(Going{chunk})));
            if (going.back().requests == 0) { // nothing of it is written, and its sum is known or due
                going.pop_back();
                continue;
            }
            requests += going.back().requests;
            while (are_enough(going.size(), requests - going.front().requests, options_.depth))
                TRY(look_at_oldest());
        }
        while (!going.empty())
            TRY(look_at_oldest());
        return {};
    });
}

Result<void> Writer::write_chunk(Pass& pass, IoQueue& queue, Going& going) {
    Block& block = pass.block;
    const uint64_t chunk = going.chunk;
    const PageRun pages = pages_of_chunk(chunk, block.written.pages());
    bool touched = false;
    Result<void> result;
    std::vector<PageRun> holes, data;
    const auto add = [](std::vector<PageRun>& runs, uint64_t page) {
        if (!runs.empty() && runs.back().first + runs.back().count == page)
            ++runs.back().count;
        else
            runs.push_back({page, 1});
    };
    pass.which.runs(pages, [&](PageRun run) {
        touched = true;
        for (uint64_t page = run.first; page < run.first + run.count; ++page) {
            if (!is_zero(pass.ram + page * kPage)) {
                block.written.set(page);
                add(data, page);
            } else if (block.written.test(page)) {
                block.written.clear(page);
                add(holes, page);
            }
        }
    });
    if (!touched) return {};
    for (const PageRun run : holes)
        TRY(make_hole(block, run));
    uint64_t in_pass = 0, in_file = 0;
    for (const PageRun run : data)
        in_pass += run.count;
    block.written.runs(pages, [&](PageRun run) { in_file += run.count; });
    going.summed = in_pass == in_file;
    block.sum_due[chunk] = going.summed ? 0 : 1;
    if (going.summed) block.sums[chunk] = pass.sum(chunk); // before the first byte is written
    for (const PageRun run : data) {
        const std::span<const std::byte> bytes(pass.ram + run.first * kPage, run.count * kPage);
        bytes_written_ += bytes.size();
        ++going.requests;
        TRY(queue.write(block.layout.pages_at + run.first * kPage, bytes, going.pending));
    }
    return {};
}

// RAM may change under the hands of its writer, also while the guest stands still: a disk's read that is in
// flight lands there. So where RAM is not what it was before it was written, or is not what has been written,
// it is the file that is summed.
Result<void> Writer::sum_what_is_due() {
    for (Block& block : blocks_) {
        std::vector<uint64_t> due;
        for (uint64_t chunk = 0; chunk < block.sum_due.size(); ++chunk)
            if (block.sum_due[chunk] != 0) due.push_back(chunk);
        Work work(due.size(), options_.cancel_fd);
        auto summed = in_threads(options_.threads, work, [&]() -> Result<void> {
            TRY_ASSIGN(const PageBuffer bytes, page_buffer(kChunk));
            uint32_t pending = 0; // outlives the queue
            IoQueue queue(*file_, options_.depth, options_.engine);
            for (uint64_t i = 0; work.take(i);) {
                const uint64_t chunk = due[i];
                const PageRun pages = pages_of_chunk(chunk, block.written.pages());
                Result<void> begun;
                block.written.runs(pages, [&](PageRun run) {
                    const std::span<std::byte> into(
                        bytes.get() + (run.first - pages.first) * kPage, run.count * kPage);
                    if (begun) begun = queue.read(block.layout.pages_at + run.first * kPage, into, pending);
                });
                TRY(begun);
                TRY(queue.await(pending));
                block.sums[chunk] = sum_of_pages(block.written, pages, bytes.get());
                block.sum_due[chunk] = 0;
            }
            return {};
        });
        TRY(summed);
    }
    return {};
}

Result<void> Writer::make_hole(const Block& block, PageRun run) {
    const uint64_t offset = block.layout.pages_at + run.first * kPage;
    const uint64_t size = run.count * kPage;
    if (::fallocate(file_->fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
            static_cast<off_t>(size)) == 0)
        return {};
    if (errno != EOPNOTSUPP) return Error::from_errno("make a hole in " + new_path_);
    return write_plain(offset, std::string(size, '\0'));
}

// Rounded up to whole pages by zeros, from memory that O_DIRECT takes.
Result<void> Writer::write_plain(uint64_t offset, std::string_view bytes) {
    const size_t size = round_up(bytes.size(), kPage);
    TRY_ASSIGN(const PageBuffer copy, page_buffer(size));
    std::memcpy(copy.get(), bytes.data(), bytes.size());
    std::memset(copy.get() + bytes.size(), 0, size - bytes.size());
    uint32_t pending = 0; // outlives the queue
    IoQueue queue(*file_, 1, Engine::kCalls);
    TRY(queue.write(offset, {copy.get(), size}, pending));
    return queue.await(pending);
}

// The checksum of both.
Result<uint64_t> Writer::write_tables(const Block& block) {
    const std::string_view bitmap = block.written.bytes();
    std::string sums;
    for (const uint64_t sum : block.sums)
        for (size_t i = 0; i < sizeof(sum); ++i)
            sums.push_back(static_cast<char>(sum >> (8 * i) & 0xff));
    TRY(write_plain(block.layout.bitmap_at, bitmap));
    TRY(write_plain(block.layout.sums_at, sums));
    return checksum(std::string(bitmap) + sums);
}

Result<void> Writer::sync() {
    if (::fsync(file_->fd()) < 0) return Error::from_errno("sync " + new_path_);
    return {};
}

Result<void> Writer::finish(std::string_view state) {
    if (state.empty() || state.size() > kMaxStateBytes)
        return Error(
            ErrorCode::kInternal, "a state of " + std::to_string(state.size()) + " bytes is not saved");
    TRY(sum_what_is_due());
    Header header;
    header.state_size = state.size();
    header.state_sum = checksum(state);
    for (const Block& block : blocks_) {
        BlockHeader out{block.spec, 0, 0};
        if (block.spec.place == Place::kHere) {
            TRY_ASSIGN(out.tables_sum, write_tables(block));
            out.written = block.written.count();
        }
        header.blocks.push_back(std::move(out));
    }
    TRY(write_plain(state_at_, state));
    TRY(sync()); // the header says that all the rest is there
    const HeaderPage page = encode(header);
    TRY(write_plain(0, {reinterpret_cast<const char*>(page.data()), page.size()}));
    return sync();
}

Result<void> Writer::publish() {
    TRY_ASSIGN(const UniqueFd folder, fd::open(directory_, O_RDONLY | O_DIRECTORY));
    // To free its blocks may take as long as the save; that comes after the new name is on the disk.
    if (auto former = fd::open(path_, O_PATH | O_NOFOLLOW)) former_ = std::move(former).value();
    if (::rename(new_path_.c_str(), path_.c_str()) < 0)
        return Error::from_errno("rename " + new_path_ + " to " + path_);
    stays_ = true;
    if (::fsync(folder.get()) < 0) return Error::from_errno("sync " + directory_);
    return {};
}

uint64_t Writer::pages_in_file() const {
    uint64_t pages = 0;
    for (const Block& block : blocks_)
        pages += block.written.count();
    return pages;
}

std::vector<std::string> Writer::notes() const {
    std::vector<std::string> notes;
    if (!file_->direct())
        notes.push_back("the file system of " + directory_ +
                        " does not take O_DIRECT; RAM was written through the host's page cache");
    if (without_ring_) notes.push_back("io_uring cannot be used here; RAM was written call by call");
    return notes;
}

} // namespace liveupdate::handoff::save
