#include "vmm/lazy_ram.hpp"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "handoff/base/deadline.hpp"
#include "handoff/base/fd.hpp"

namespace liveupdate::vmm {
namespace {

using handoff::save::kChunk;
using handoff::save::kPage;
using handoff::save::PageRun;

constexpr auto kAgainAfter = std::chrono::seconds(1);
constexpr std::chrono::milliseconds kMostSilence = std::chrono::seconds(15);

uint64_t address_of(const void* at) {
    return reinterpret_cast<uint64_t>(at);
}

std::string seconds_since(uint64_t ns) {
    return std::to_string((monotonic_ns() - ns) / 1'000'000'000) + " s";
}

} // namespace

// For one chunk.
class LazyRam::Buffer {
public:
    Buffer() : bytes_(static_cast<std::byte*>(std::aligned_alloc(kPage, kChunk))) {}
    ~Buffer() { std::free(bytes_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    Result<std::span<std::byte>> bytes() const {
        if (bytes_ == nullptr) return Error(ErrorCode::kSystem, "there is no memory for a chunk", ENOMEM);
        return std::span<std::byte>(bytes_, kChunk);
    }

private:
    std::byte* bytes_;
};

LazyRam::LazyRam(Userfault faults, std::function<void(std::string)> failed)
    : faults_(std::move(faults)), failed_(std::move(failed)) {}

Result<std::unique_ptr<LazyRam>> LazyRam::begin(
    Save save, std::vector<Part> parts, std::function<void(std::string)> failed) {
    TRY_ASSIGN(Userfault faults, Userfault::open("restore without --lazy"));
    std::unique_ptr<LazyRam> ram(new LazyRam(std::move(faults), std::move(failed)));
    TRY(ram->open(std::move(save), std::move(parts)));
    ram->server_ = std::thread([&lazy = *ram] {
        lazy.serve();
        lazy.leave();
    });
    ram->filler_ = std::thread([&lazy = *ram] {
        lazy.fill_all();
        lazy.leave();
    });
    return ram;
}

LazyRam::~LazyRam() {
    ending_ = true;
    const uint64_t one = 1;
    if (wake_) static_cast<void>(::write(wake_.get(), &one, sizeof(one)));
    if (filler_.joinable()) filler_.join();
    if (server_.joinable()) server_.join();
}

Result<void> LazyRam::open(Save save, std::vector<Part> parts) {
    TRY_ASSIGN(wake_, fd::eventfd(0));
    handoff::save::IoOptions options;
    options.engine = handoff::save::Engine::kCalls; // a chunk at a time, by each of two threads
    options.cancel_fd = wake_.get();
    if (save.file) {
        TRY_ASSIGN(save_, handoff::save::Reader::adopt(std::move(save.file), "the saved guest", options));
    } else {
        patience_ = save.patience;
        options.silence = std::min(kMostSilence, patience_);
        TRY_ASSIGN(save_, handoff::save::Reader::open(save.uri, options));
    }
    // Whoever writes a save may have put another one in its place since its state was read.
    if (save.sum && *save.sum != save_->header().sum())
        return Error(ErrorCode::kRefused, (save.uri.empty() ? "the file" : save.uri) +
                                              " is another save by now than the one whose state has been "
                                              "read; restore again, and leave the save alone meanwhile");
    TRY(save_->load_tables());
    parts_ = std::move(parts);
    const auto specs = save_->header().specs();
    uint64_t bytes = 0;
    for (Part& part : parts_) {
        const auto spec =
            std::find_if(specs.begin(), specs.end(), [&](const auto& s) { return s.name == part.block; });
        if (spec == specs.end() || spec->place != handoff::save::Place::kHere || part.offset % kChunk != 0 ||
            part.offset > spec->size || part.mapped.size() > spec->size - part.offset)
            return Error(
                ErrorCode::kRefused, "RAM block " + part.block + " is not in the save, or not all of it");
        for (uint64_t at = 0; at < part.mapped.size(); at += kChunk) {
            Chunk& chunk = *chunks_.emplace_back(std::make_unique<Chunk>());
            chunk.part = &part;
            chunk.block = static_cast<size_t>(spec - specs.begin());
            chunk.number = (part.offset + at) / kChunk;
            bytes += std::min<uint64_t>(kChunk, part.mapped.size() - at);
        }
    }
    bytes_left_ = bytes;
    for (const Part& part : parts_)
        TRY(faults_.watch(part.mapped).context("RAM block " + part.block));
    return {};
}

// The save is no longer needed, nor are connections to who has it.
void LazyRam::leave() {
    if (readers_.fetch_sub(1) == 1) save_.reset();
}

void LazyRam::serve() {
    Buffer buffer;
    while (!ending_ && bytes_left() > 0) {
        pollfd polled[2] = {{faults_.fd(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
        if (::poll(polled, 2, -1) < 0 && errno != EINTR)
            return fail(Error::from_errno("wait for what touches RAM"));
        if ((polled[0].revents & POLLIN) == 0) continue;
        const auto address = faults_.next();
        if (!address) return fail(address.error());
        if (!*address) continue;
        auto served = serve_one(buffer, **address);
        // What was asked for last may have come by the end of the watch.
        if (!served && bytes_left() > 0) return fail(served.error());
    }
}

Result<void> LazyRam::serve_one(Buffer& buffer, uint64_t address) {
    size_t first = 0; // chunk of the part
    for (const Part& part : parts_) {
        const uint64_t begin = address_of(part.mapped.data());
        if (address >= begin && address - begin < part.mapped.size()) {
            Chunk& chunk = *chunks_[first + (address - begin) / kChunk];
            const uint64_t page = (part.offset + (address - begin)) / kPage;
            if (!save_->written(chunk.block).test(page)) return faults_.give_zeros(address);
            uint64_t nobody = 0;
            chunk.waited_since_ns.compare_exchange_strong(nobody, monotonic_ns());
            // Whoever fills it wakes those who wait for it.
            return fill(buffer, chunk);
        }
        first += handoff::save::chunks_in(part.mapped.size());
    }
    return Error(ErrorCode::kInternal, "somebody touched what is no RAM");
}

void LazyRam::fill_all() {
    Buffer buffer;
    for (bool all_taken = false; !all_taken;) {
        all_taken = true;
        for (const auto& chunk : chunks_) {
            if (ending_ || has_failed_) return;
            if (auto filled = fill(buffer, *chunk); !filled) return fail(filled.error());
            if (!chunk->taken) all_taken = false;
        }
    }
}

Result<void> LazyRam::fill(Buffer& buffer, Chunk& chunk) {
    do {
        if (chunk.taken.exchange(true)) return {};
        TRY_ASSIGN(const bool has_come, read(buffer, chunk));
        if (has_come) return put_in_place(buffer, chunk);
        chunk.taken = false;
    } while (chunk.waited_since_ns != 0); // somebody has come meanwhile, and relied on us
    return {};
}

Result<void> LazyRam::put_in_place(Buffer& buffer, const Chunk& chunk) {
    const Part& part = *chunk.part;
    const auto& written = save_->written(chunk.block);
    const uint64_t first_page = chunk.number * handoff::save::kPagesPerChunk;
    const uint64_t at = chunk.number * kChunk - part.offset; // of the part
    const uint64_t size = std::min<uint64_t>(kChunk, part.mapped.size() - at);
    TRY_ASSIGN(const std::span<const std::byte> bytes, buffer.bytes());
    Result<void> done;
    written.runs({first_page, size / kPage}, [&](PageRun run) {
        const uint64_t in_chunk = (run.first - first_page) * kPage;
        if (done)
            done = faults_.fill(
                address_of(part.mapped.data() + at + in_chunk), bytes.subspan(in_chunk, run.count * kPage));
    });
    TRY(done);
    if (bytes_left_.fetch_sub(size, std::memory_order_acq_rel) == size) finish();
    return {};
}

// Whether it has come. Again and again while somebody waits for it, until it proves to be damaged, or that
// has lasted for too long.
Result<bool> LazyRam::read(Buffer& buffer, const Chunk& chunk) {
    TRY_ASSIGN(const auto bytes, buffer.bytes());
    for (;;) {
        auto done = save_->read_chunk(chunk.block, chunk.number, bytes);
        if (done) {
            set_trouble("");
            return true;
        }
        if (patience_.count() == 0 || ending_ || has_failed_ || done.error().code == ErrorCode::kRefused)
            return std::move(done).error();
        set_trouble(done.error().message);
        const uint64_t since = chunk.waited_since_ns;
        if (since != 0 &&
            monotonic_ns() - since >= static_cast<uint64_t>(std::chrono::nanoseconds(patience_).count()))
            return std::move(done).error().context(
                "the guest has waited for " + seconds_since(since) + " and goes no further");
        pollfd wake{wake_.get(), POLLIN, 0};
        ::poll(&wake, 1, static_cast<int>(std::chrono::milliseconds(kAgainAfter).count()));
        if (chunk.waited_since_ns == 0) return false;
    }
}

void LazyRam::finish() {
    for (const Part& part : parts_)
        faults_.unwatch(part.mapped);
    const uint64_t one = 1;
    static_cast<void>(::write(wake_.get(), &one, sizeof(one)));
}

void LazyRam::fail(const Error& error) {
    if (ending_) return; // what was read has been cut short
    if (!has_failed_.exchange(true)) failed_("the guest's RAM cannot be had from its save: " + error.message);
}

void LazyRam::set_trouble(std::string why) {
    const std::lock_guard lock(trouble_mutex_);
    if (trouble_.empty()) trouble_since_ns_ = monotonic_ns();
    trouble_ = std::move(why);
}

std::string LazyRam::trouble() const {
    const std::lock_guard lock(trouble_mutex_);
    return trouble_.empty() ? ""
                            : trouble_ + " (nothing has come for " + seconds_since(trouble_since_ns_) + ")";
}

} // namespace liveupdate::vmm
