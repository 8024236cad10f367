#include "vmm/lazy_ram.hpp"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "handoff/base/fd.hpp"

namespace liveupdate::vmm {
namespace {

using handoff::save::kChunk;
using handoff::save::kPage;
using handoff::save::PageRun;

uint64_t address_of(const void* at) {
    return reinterpret_cast<uint64_t>(at);
}

// Also for faults in the kernel, where KVM and direct I/O reach for RAM; hence not USER_MODE_ONLY.
Result<UniqueFd> open_userfaultfd() {
    UniqueFd file(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
    if (!file && (errno == EPERM || errno == ENOSYS))
        return Error(ErrorCode::kUnsupported,
            "this user may not use userfaultfd, which a lazy restore needs; set the sysctl "
            "vm.unprivileged_userfaultfd to 1, or restore without --lazy");
    if (!file) return Error::from_errno("userfaultfd");
    uffdio_api api{};
    api.api = UFFD_API;
    api.features = UFFD_FEATURE_MISSING_SHMEM;
    if (::ioctl(file.get(), UFFDIO_API, &api) < 0)
        return Error(ErrorCode::kUnsupported,
            "this kernel has no userfaultfd for shared memory; restore without --lazy");
    return file;
}

} // namespace

// Of one thread.
class LazyRam::Source {
public:
    explicit Source(handoff::save::Reader& file)
        : file_(file), bytes_(static_cast<std::byte*>(std::aligned_alloc(kPage, kChunk))) {}
    ~Source() { std::free(bytes_); }
    Source(const Source&) = delete;
    Source& operator=(const Source&) = delete;

    Result<std::span<std::byte>> read(size_t block, uint64_t chunk) {
        if (bytes_ == nullptr) return Error(ErrorCode::kSystem, "there is no memory for a chunk", ENOMEM);
        const std::span<std::byte> whole(bytes_, kChunk);
        TRY(file_.read_chunk(block, chunk, whole));
        return whole;
    }

private:
    handoff::save::Reader& file_;
    std::byte* bytes_;
};

Result<std::unique_ptr<LazyRam>> LazyRam::begin(
    UniqueFd file, std::vector<Part> parts, std::function<void(std::string)> failed) {
    std::unique_ptr<LazyRam> ram(new LazyRam(std::move(failed)));
    TRY(ram->open(std::move(file), std::move(parts)));
    ram->server_ = std::thread([&lazy = *ram] { lazy.serve(); });
    ram->filler_ = std::thread([&lazy = *ram] { lazy.fill_all(); });
    return ram;
}

LazyRam::~LazyRam() {
    ending_ = true;
    const uint64_t one = 1;
    if (wake_) static_cast<void>(::write(wake_.get(), &one, sizeof(one)));
    if (filler_.joinable()) filler_.join();
    if (server_.joinable()) server_.join();
}

Result<void> LazyRam::open(UniqueFd file, std::vector<Part> parts) {
    handoff::save::IoOptions options;
    options.engine = handoff::save::Engine::kCalls; // a chunk at a time, by each of two threads
    TRY_ASSIGN(file_, handoff::save::Reader::adopt(std::move(file), "the saved guest", options));
    TRY(file_->load_tables());
    TRY_ASSIGN(wake_, fd::eventfd(0));
    TRY_ASSIGN(faults_, open_userfaultfd());
    parts_ = std::move(parts);
    const auto specs = file_->header().specs();
    uint64_t bytes = 0;
    for (Part& part : parts_) {
        const auto spec =
            std::find_if(specs.begin(), specs.end(), [&](const auto& s) { return s.name == part.block; });
        if (spec == specs.end() || spec->place != handoff::save::Place::kHere || part.offset % kChunk != 0 ||
            part.offset > spec->size || part.mapped.size() > spec->size - part.offset)
            return Error(
                ErrorCode::kRefused, "RAM block " + part.block + " is not in the file, or not all of it");
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
        TRY(watch(part));
    return {};
}

Result<void> LazyRam::watch(const Part& part) const {
    uffdio_register area{};
    area.range = {address_of(part.mapped.data()), part.mapped.size()};
    area.mode = UFFDIO_REGISTER_MODE_MISSING;
    if (::ioctl(faults_.get(), UFFDIO_REGISTER, &area) < 0)
        return Error::from_errno("watch for the first touch of RAM block " + part.block);
    return {};
}

void LazyRam::serve() {
    Source source(*file_);
    while (!ending_ && bytes_left() > 0) {
        pollfd polled[2] = {{faults_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
        if (::poll(polled, 2, -1) < 0 && errno != EINTR)
            return fail(Error::from_errno("wait for what touches RAM"));
        if ((polled[0].revents & POLLIN) == 0) continue;
        auto served = serve_one(source);
        // What was asked for last may have come by the end of the watch.
        if (!served && bytes_left() > 0) return fail(served.error());
    }
}

Result<void> LazyRam::serve_one(Source& source) {
    uffd_msg message{};
    const ssize_t got = ::read(faults_.get(), &message, sizeof(message));
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return {};
    if (got != sizeof(message)) return Error::from_errno("read what touches RAM");
    if (message.event != UFFD_EVENT_PAGEFAULT) return {};
    const uint64_t address = message.arg.pagefault.address / kPage * kPage;
    size_t first = 0; // chunk of the part
    for (Part& part : parts_) {
        const uint64_t begin = address_of(part.mapped.data());
        if (address >= begin && address - begin < part.mapped.size()) {
            Chunk& chunk = *chunks_[first + (address - begin) / kChunk];
            const uint64_t page = (part.offset + (address - begin)) / kPage;
            if (!file_->written(chunk.block).test(page)) return give_zero(address);
            // Whoever fills it wakes those who wait for it.
            return fill(source, chunk);
        }
        first += handoff::save::chunks_in(part.mapped.size());
    }
    return Error(ErrorCode::kInternal, "somebody touched what is no RAM");
}

void LazyRam::fill_all() {
    Source source(*file_);
    for (const auto& chunk : chunks_) {
        if (ending_ || has_failed_) return;
        if (auto filled = fill(source, *chunk); !filled) return fail(filled.error());
    }
}

Result<void> LazyRam::fill(Source& source, Chunk& chunk) {
    if (chunk.taken.exchange(true)) return {};
    const Part& part = *chunk.part;
    const auto& written = file_->written(chunk.block);
    const uint64_t first_page = chunk.number * handoff::save::kPagesPerChunk;
    const uint64_t at = chunk.number * kChunk - part.offset; // of the part
    const uint64_t size = std::min<uint64_t>(kChunk, part.mapped.size() - at);
    TRY_ASSIGN(const auto bytes, source.read(chunk.block, chunk.number));
    Result<void> done;
    written.runs({first_page, size / kPage}, [&](PageRun run) {
        const uint64_t in_chunk = (run.first - first_page) * kPage;
        if (done) done = put(part.mapped.data() + at + in_chunk, bytes.data() + in_chunk, run.count * kPage);
    });
    TRY(done);
    if (bytes_left_.fetch_sub(size, std::memory_order_acq_rel) == size) finish();
    return {};
}

// Nobody else puts a page there: one that is there already means that somebody has touched the memory
// elsewhere and holds zeros for RAM.
Result<void> LazyRam::put(std::byte* to, const std::byte* from, size_t size) const {
    while (size > 0) {
        uffdio_copy copy{};
        copy.dst = address_of(to);
        copy.src = address_of(from);
        copy.len = size;
        const int done = ::ioctl(faults_.get(), UFFDIO_COPY, &copy);
        if (done < 0 && copy.copy <= 0 && errno != EAGAIN)
            return Error::from_errno("put a page of RAM in place");
        const size_t put = copy.copy > 0 ? static_cast<size_t>(copy.copy) : 0;
        to += put;
        from += put;
        size -= put;
    }
    return {};
}

Result<void> LazyRam::give_zero(uint64_t address) const {
    uffdio_zeropage zero{};
    zero.range = {address, kPage};
    while (::ioctl(faults_.get(), UFFDIO_ZEROPAGE, &zero) < 0) {
        if (errno == EEXIST) { // asked for twice
            uffdio_range range{address, kPage};
            ::ioctl(faults_.get(), UFFDIO_WAKE, &range);
            return {};
        }
        if (errno != EAGAIN) return Error::from_errno("give a page of RAM");
    }
    return {};
}

// What is still missing is zero, as the kernel gives it by itself.
void LazyRam::finish() {
    for (const Part& part : parts_) {
        uffdio_range range{address_of(part.mapped.data()), part.mapped.size()};
        ::ioctl(faults_.get(), UFFDIO_UNREGISTER, &range); // also wakes who waits
    }
    const uint64_t one = 1;
    static_cast<void>(::write(wake_.get(), &one, sizeof(one)));
}

void LazyRam::fail(const Error& error) {
    if (!has_failed_.exchange(true)) failed_("the guest's RAM cannot be had from its save: " + error.message);
}

} // namespace liveupdate::vmm
