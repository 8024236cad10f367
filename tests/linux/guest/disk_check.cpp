#include "tests/linux/guest/disk_check.hpp"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <linux/fs.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "tests/linux/guest/queues.hpp"

namespace linux_guest {
namespace {

constexpr std::uint64_t kComplaints = 5;          // blocks named by one mismatch of a long request
constexpr std::uint64_t kLostNs = 60'000'000'000; // a request this old will not come back
using ULL = unsigned long long;

} // namespace

DiskCheck::DiskCheck(DiskOptions options) : options_(std::move(options)), random_state_(mix(options_.disk)) {}

DiskCheck::~DiskCheck() {
    if (context_ != 0) ::syscall(SYS_io_destroy, context_);
    for (auto& request : requests_)
        std::free(request.buffer);
    if (fd_ >= 0) ::close(fd_);
}

std::uint64_t DiskCheck::random() {
    return mix(random_state_++);
}

bool DiskCheck::open() {
    const std::string path = "/dev/" + options_.name;
    fd_ = ::open(path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC);
    std::uint64_t bytes = 0;
    if (fd_ < 0 || ::ioctl(fd_, BLKGETSIZE64, &bytes) != 0) {
        error(text("disk %s cannot be opened: %s", options_.name.c_str(), std::strerror(errno)));
        return false;
    }
    const std::uint64_t blocks = std::min(options_.blocks, bytes / kBlockBytes);
    acknowledged_.resize(blocks);
    tried_.resize(blocks);
    taken_.resize(blocks);
    requests_.resize(options_.depth);
    for (auto& request : requests_)
        request.buffer =
            static_cast<Block*>(std::aligned_alloc(kBlockBytes, kBlockBytes * options_.request_blocks));
    if (blocks < options_.request_blocks || ::syscall(SYS_io_setup, options_.depth, &context_) != 0) {
        error(text("disk %s: io_setup fails, or the disk is too small", options_.name.c_str()));
        return false;
    }
    return true;
}

// Blocks of which none is in another request.
bool DiskCheck::choose(Request& request) {
    for (int attempt = 0; attempt < 16; ++attempt) {
        const std::uint64_t count = 1 + random() % options_.request_blocks;
        const std::uint64_t first = random() % (taken_.size() - count + 1);
        bool free = true;
        for (std::uint64_t i = first; i < first + count; ++i)
            free = free && !taken_[i];
        if (!free) continue;
        request.first = first;
        request.count = count;
        return true;
    }
    return false;
}

void DiskCheck::prepare(Request& request, Kind kind) {
    request.kind = kind;
    request.call = {};
    request.call.aio_data = reinterpret_cast<std::uintptr_t>(&request);
    request.call.aio_fildes = static_cast<std::uint32_t>(fd_);
    request.busy = true;
    request.since_ns = now_ns();
    if (kind == Kind::kFlush) {
        request.count = 0;
        request.call.aio_lio_opcode = IOCB_CMD_FDSYNC;
        return;
    }
    request.call.aio_lio_opcode = kind == Kind::kRead ? IOCB_CMD_PREAD : IOCB_CMD_PWRITE;
    request.call.aio_buf = reinterpret_cast<std::uintptr_t>(request.buffer);
    request.call.aio_nbytes = request.count * kBlockBytes;
    request.call.aio_offset = static_cast<std::int64_t>(request.first * kBlockBytes);
    for (std::uint64_t i = 0; i < request.count; ++i) {
        taken_[request.first + i] = true;
        if (kind == Kind::kWrite)
            fill_block(request.buffer[i], options_.disk, request.first + i, ++tried_[request.first + i]);
        else
            request.buffer[i].fill(0xdeadbeefdeadbeef);
    }
}

// All requests that are not in flight, in one call.
void DiskCheck::submit_free() {
    std::vector<iocb*> calls;
    for (auto& request : requests_) {
        if (request.busy) continue;
        const std::uint64_t dice = random() % 100;
        if (dice < 2) {
            prepare(request, Kind::kFlush);
        } else {
            if (!choose(request)) continue;
            prepare(request, dice < 51 ? Kind::kRead : Kind::kWrite);
        }
        calls.push_back(&request.call);
    }
    for (std::size_t done = 0; done < calls.size();) {
        const long n = ::syscall(SYS_io_submit, context_, calls.size() - done, calls.data() + done);
        if (n <= 0) {
            error(text("disk %s: io_submit: %s", options_.name.c_str(), std::strerror(errno)));
            return;
        }
        done += static_cast<std::size_t>(n);
        in_flight_ += static_cast<std::uint64_t>(n);
    }
}

void DiskCheck::reap(long at_least) {
    std::vector<io_event> events(requests_.size());
    timespec limit{1, 0};
    const long n = ::syscall(SYS_io_getevents, context_, at_least, events.size(), events.data(), &limit);
    for (long i = 0; i < n; ++i) {
        auto& request = *reinterpret_cast<Request*>(
            static_cast<std::uintptr_t>(events[static_cast<std::size_t>(i)].data));
        if (!request.busy) error(text("disk %s: a request completed twice", options_.name.c_str()));
        --in_flight_;
        complete(request, events[static_cast<std::size_t>(i)].res);
    }
}

// Says so once. True when a request has been away for so long that it is lost.
bool DiskCheck::lost() {
    if (lost_) return true;
    for (const auto& request : requests_) {
        if (!request.busy || now_ns() - request.since_ns < kLostNs) continue;
        error(text("disk %s block=%llu blocks=%llu kind=%d: never completed", options_.name.c_str(),
            ULL{request.first}, ULL{request.count}, static_cast<int>(request.kind)));
        lost_ = true;
    }
    return lost_;
}

void DiskCheck::complete(Request& request, long long result) {
    slowest_ns_.see(now_ns() - request.since_ns);
    request.busy = false;
    const auto wanted = static_cast<long long>(request.call.aio_nbytes);
    if (result != wanted)
        error(text("disk %s block=%llu blocks=%llu kind=%d: result %lld, not %lld", options_.name.c_str(),
            ULL{request.first}, ULL{request.count}, static_cast<int>(request.kind), result, wanted));
    else if (request.kind == Kind::kRead)
        verify(request);
    for (std::uint64_t i = request.first; i < request.first + request.count; ++i) {
        taken_[i] = false;
        if (request.kind == Kind::kWrite) acknowledged_[i] = tried_[i];
    }
    (request.kind == Kind::kRead ? reads_ : request.kind == Kind::kWrite ? writes_ : flushes_)++;
}

void DiskCheck::verify(const Request& request) {
    std::uint64_t wrong = 0;
    for (std::uint64_t i = 0; i < request.count; ++i) {
        fill_block(*expected_, options_.disk, request.first + i, acknowledged_[request.first + i]);
        if (*expected_ == request.buffer[i]) continue;
        if (++wrong <= kComplaints) complain(request.first + i, request.buffer[i], "read");
    }
}

void DiskCheck::complain(std::uint64_t block, const Block& found, const char* how) {
    const BlockHeader is = header_of(found), should = header_of(*expected_);
    const char* what = is.magic != kBlockMagic || is.disk != options_.disk || is.block != block
                           ? "is not its own"
                       : is.generation != should.generation ? "has another generation"
                                                            : "is torn";
    error(text("disk %s block=%llu %s %s: generation %u expected, found magic %llx disk %u block %llu "
               "generation %u",
        options_.name.c_str(), ULL{block}, how, what, acknowledged_[block], ULL{is.magic}, is.disk,
        ULL{is.block}, is.generation));
}

// At the end: everything once more, in order.
void DiskCheck::read_all() {
    if (::fsync(fd_) != 0) error(text("disk %s: fsync: %s", options_.name.c_str(), std::strerror(errno)));
    Request& request = requests_[0];
    std::uint64_t written = 0, hash = 0;
    for (std::uint64_t block = 0; block < acknowledged_.size(); block += request.count) {
        request.first = block;
        request.count = std::min<std::uint64_t>(options_.request_blocks, acknowledged_.size() - block);
        request.kind = Kind::kRead;
        const auto bytes = static_cast<ssize_t>(request.count * kBlockBytes);
        if (::pread(fd_, request.buffer, request.count * kBlockBytes,
                static_cast<off_t>(block * kBlockBytes)) != bytes)
            error(text("disk %s block=%llu: last read: %s", options_.name.c_str(), ULL{block},
                std::strerror(errno)));
        else
            verify(request);
    }
    for (std::uint64_t block = 0; block < acknowledged_.size(); ++block) {
        written += acknowledged_[block] != 0;
        hash += model_part(block, acknowledged_[block]);
    }
    say(text("model disk=%u blocks=%zu written=%llu hash=%016llx", options_.disk, acknowledged_.size(),
        ULL{written}, ULL{hash}));
}

void DiskCheck::run(const std::atomic<bool>& stop) {
    if (!open()) return;
    while (!stop && !lost()) {
        if (options_.wander) next_cpu();
        submit_free();
        if (in_flight_ > 0) reap(1);
        if (options_.pause_us > 0) sleep_us(options_.pause_us);
    }
    while (in_flight_ > 0 && !lost())
        reap(1);
    if (!lost()) read_all();
}

std::string DiskCheck::progress() const {
    return text("disk %s queues=%u reads=%llu writes=%llu flushes=%llu slowest_us=%llu",
        options_.name.c_str(), disk_queues(options_.name), ULL{reads_.load()}, ULL{writes_.load()},
        ULL{flushes_.load()}, ULL{slowest_ns_.value() / 1000});
}

} // namespace linux_guest
