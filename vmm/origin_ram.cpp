#include "vmm/origin_ram.hpp"

#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "handoff/base/fd.hpp"

namespace liveupdate::vmm {
namespace {

using handoff::save::kChunk;
using handoff::save::kPage;
using handoff::save::kPagesPerChunk;

constexpr int kIdleMs = 200; // then the server's buffer is given back to the host

} // namespace

// One chunk, of which no more is backed by memory than was needed lately.
class OriginRam::Buffer {
public:
    Buffer() : at_(::mmap(nullptr, kChunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {}
    ~Buffer() {
        if (*this) ::munmap(at_, kChunk);
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    explicit operator bool() const { return at_ != MAP_FAILED; }
    std::span<std::byte> bytes() const { return {static_cast<std::byte*>(at_), kChunk}; }
    void give_back() const { ::madvise(at_, kChunk, MADV_DONTNEED); }

private:
    void* at_;
};

Result<std::unique_ptr<OriginRam>> OriginRam::begin(int file, const handoff::Manifest& manifest,
    const std::function<std::span<std::byte>(size_t region)>& mapped,
    std::function<void(std::string)> failed) {
    TRY_ASSIGN(Userfault faults, Userfault::open("restore the guest without --mapped"));
    std::unique_ptr<OriginRam> ram(new OriginRam(std::move(faults)));
    ram->failed_ = std::move(failed);
    TRY_ASSIGN(ram->wake_, fd::eventfd(0));
    handoff::save::IoOptions options;
    options.engine = handoff::save::Engine::kCalls; // by one thread, mostly out of the page cache
    TRY_ASSIGN(UniqueFd own, fd::dup(file));
    TRY_ASSIGN(ram->file_, handoff::save::Reader::adopt(std::move(own), "the RAM's origin", options));
    ram->layout_ = ram->file_->header().layout();
    for (const handoff::save::BlockSpec& spec : ram->file_->header().specs())
        ram->checked_.emplace_back(handoff::save::chunks_in(spec.size));
    for (size_t i = 0; i < manifest.regions.size(); ++i) {
        const handoff::RamRegion& region = manifest.regions[i];
        TRY(ram->add(manifest.blocks[region.block], region.offset, mapped(i)));
    }
    TRY(ram->file_->load_tables());
    for (const Part& part : ram->parts_)
        TRY(ram->faults_.watch(part.mapped));
    ram->server_ = std::thread([&served = *ram] { served.serve(); });
    return ram;
}

OriginRam::~OriginRam() {
    ending_ = true;
    const uint64_t one = 1;
    if (wake_) static_cast<void>(::write(wake_.get(), &one, sizeof(one)));
    if (server_.joinable()) server_.join();
}

Result<void> OriginRam::add(const handoff::RamBlock& block, uint64_t offset, std::span<std::byte> mapped) {
    if (!block.name.starts_with("ram")) return {};
    if (!handoff::comes_by_pages(block.kind))
        return Error(ErrorCode::kUnsupported,
            "RAM on a hugetlbfs or a disk has no origin; restore the guest without --mapped");
    const auto specs = file_->header().specs();
    const auto spec =
        std::find_if(specs.begin(), specs.end(), [&](const auto& s) { return s.name == block.name; });
    if (spec == specs.end() || spec->place != handoff::save::Place::kHere || spec->size != block.size)
        return Error(ErrorCode::kRefused, "RAM block " + block.name +
                                              " is not in its origin, or of another "
                                              "size there");
    parts_.push_back({static_cast<size_t>(spec - specs.begin()), offset / kPage, mapped});
    return {};
}

void OriginRam::serve() {
    const auto fail = [this](const Error& error) {
        failed_("the guest's RAM cannot be had from its origin: " + error.message);
    };
    const Buffer buffer;
    if (!buffer) return fail(Error::from_errno("there is no memory for a chunk"));
    for (int wait = -1; !ending_;) {
        pollfd polled[2] = {{faults_.fd(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
        const int ready = ::poll(polled, 2, wait);
        if (ready < 0 && errno != EINTR) return fail(Error::from_errno("wait for what touches RAM"));
        if (ready == 0) buffer.give_back();
        wait = ready == 0 ? -1 : kIdleMs;
        while (!ending_) {
            const auto address = faults_.next();
            if (!address) return fail(address.error());
            if (!*address) break;
            if (auto served = serve_one(buffer, **address); !served) return fail(served.error());
        }
    }
}

Result<void> OriginRam::serve_one(const Buffer& buffer, uint64_t address) {
    for (const Part& part : parts_) {
        const auto begin = reinterpret_cast<uint64_t>(part.mapped.data());
        if (address < begin || address - begin >= part.mapped.size()) continue;
        const uint64_t page = part.first_page + (address - begin) / kPage;
        if (!file_->written(part.block).test(page)) return faults_.give_zeros(address);
        TRY_ASSIGN(const auto bytes, page_of(buffer, part.block, page));
        return faults_.give(address, bytes);
    }
    return Error(ErrorCode::kInternal, "somebody touched what is no RAM");
}

// The first touch of a chunk reads and checks all of it; after that pages come one by one.
Result<std::span<const std::byte>> OriginRam::page_of(const Buffer& buffer, size_t block, uint64_t page) {
    const uint64_t chunk = page / kPagesPerChunk;
    if (!checked_[block][chunk]) {
        TRY(file_->read_chunk(block, chunk, buffer.bytes()));
        checked_[block][chunk] = true;
        return std::span<const std::byte>(buffer.bytes().subspan(page % kPagesPerChunk * kPage, kPage));
    }
    const std::span<std::byte> bytes = buffer.bytes().first(kPage);
    const uint64_t offset = layout_.blocks[block].pages_at + page * kPage;
    for (size_t done = 0; done < kPage;) {
        const ssize_t got =
            ::pread(file_->fd(), bytes.data() + done, kPage - done, static_cast<off_t>(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return Error::from_errno("read a page of RAM, 4096 bytes from " + std::to_string(offset));
        if (got == 0) return Error(ErrorCode::kRefused, "the file has been cut while it was in use");
        done += static_cast<size_t>(got);
    }
    return std::span<const std::byte>(bytes);
}

} // namespace liveupdate::vmm
