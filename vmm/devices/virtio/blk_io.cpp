// How a block device's requests are carried out: in our own io_uring, and what others have left in theirs.
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>

#include "vmm/devices/virtio/blk.hpp"

namespace liveupdate::vmm::virtio {

using namespace blk;

namespace {

constexpr size_t kMaxVectors = 1024; // IOV_MAX
constexpr size_t kZeroBytes = 64 << 10;
constexpr auto kWatchTime = std::chrono::microseconds(32); // as long as a sleep and a wake may take
constexpr auto kRetry = std::chrono::milliseconds(1);      // when the kernel has no memory for a request

// Whether a submission returns without having waited for the back end. FUSE for one has no asynchronous
// start: it blocks the submitter for a whole request.
bool submits_without_waiting(int file) {
    struct stat what {};
    if (::fstat(file, &what) == 0 && S_ISBLK(what.st_mode)) return true;
    struct statfs where {};
    if (::fstatfs(file, &where) != 0) return false;
    constexpr uint32_t kXfs = 0x58465342;
    switch (static_cast<uint32_t>(where.f_type)) {
    case EXT4_SUPER_MAGIC:
    case BTRFS_SUPER_MAGIC:
    case TMPFS_MAGIC:
    case kXfs:
        return true;
    default:
        return false;
    }
}

uint8_t* zeroes() {
    alignas(4096) static uint8_t bytes[kZeroBytes];
    return bytes;
}

void drop_front(std::vector<iovec>& data, uint64_t bytes) {
    size_t whole = 0;
    for (; whole < data.size() && bytes >= data[whole].iov_len; ++whole)
        bytes -= data[whole].iov_len;
    data.erase(data.begin(), data.begin() + static_cast<std::ptrdiff_t>(whole));
    if (bytes == 0 || data.empty()) return;
    data[0].iov_base = static_cast<uint8_t*>(data[0].iov_base) + bytes;
    data[0].iov_len -= bytes;
}

// The next part of a range that is zeroed by writing.
void fill_zeroes(std::vector<iovec>& data, uint64_t left) {
    data.clear();
    for (size_t i = 0; i < 64 && left > 0; ++i) {
        const uint64_t part = std::min<uint64_t>(left, kZeroBytes);
        data.push_back({zeroes(), part});
        left -= part;
    }
}

constexpr size_t kAlignment = 4096;       // no back end wants more
constexpr size_t kBounceBytes = 64 << 10; // of one request at a time

enum Direction { kFromGuest, kToGuest };

// Between the front of `guest` and all of `ours`.
void copy(std::span<const iovec> guest, iovec ours, Direction direction) {
    auto* at = static_cast<uint8_t*>(ours.iov_base);
    for (const iovec& part : guest) {
        const size_t bytes = std::min(part.iov_len, ours.iov_len);
        if (direction == kToGuest)
            std::copy_n(at, bytes, static_cast<uint8_t*>(part.iov_base));
        else
            std::copy_n(static_cast<uint8_t*>(part.iov_base), bytes, at);
        at += bytes;
        ours.iov_len -= bytes;
    }
}

} // namespace

Result<void> Blk::open_back_end() {
    always_async_ = !submits_without_waiting(file_.get());
    TRY_ASSIGN(ring_, IoRing::create());
    TRY(worker().watch(ring_->fd(), EPOLLIN, kRingToken));
    for (const Foreign& foreign : foreign_)
        TRY(worker().watch(foreign.ring.fd(), EPOLLIN, foreign.ring.id()));
    return {};
}

void Blk::ready(uint64_t token) {
    // Rings are looked at in every round.
    if (token < kFirstQueueToken) return;
    const size_t queue = token - kFirstQueueToken;
    transport().clear_kick(queue);
}

void Blk::look() {
    settle_carried();
}

// Queues are looked at in every round, and kicks wanted again only before the worker sleeps.
void Blk::finish_round() {
    do {
        serve_all();
        carry_out();
    } while (!worker().must_yield() && (watch_for_more() || expect_kicks()));
    drop_idle_rings();
}

void Blk::carry_out() {
    submit();
    // What is reaped may lead to more: the rest of a short one, and buffers for which there was no slot.
    while (reap() > 0 && !worker().must_yield()) {
        if (starved_) serve_all();
        submit();
    }
    for (size_t i = 0; i < touched_.size(); ++i) {
        Queue* queue = transport().queue(i);
        if (std::exchange(touched_[i], 0) != 0 && queue != nullptr) transport().signal_used(*queue);
    }
    pending_.store(in_flight());
    if (unsettled_.load()) unsettled_.store(has_orphans());
}

// Looks for a moment instead of sleeping, where the last sleep was no longer than that: a kick and a wake
// cost more. True when there is something to do.
bool Blk::watch_for_more() {
    if (worker().slept() > kWatchTime) return false;
    const Deadline end = Deadline::after(kWatchTime);
    while (!worker().must_yield() && !end.passed()) {
        if (has_more()) return true;
        __builtin_ia32_pause();
    }
    return false;
}

bool Blk::has_more() {
    // Rings of others do not count: what their processes write there must not keep this thread busy.
    if (ring_->has_completions()) return true;
    if (starved_) return false; // buffers wait for a slot, and a slot for a completion
    for (size_t i = 0; i < transport().queue_count(); ++i)
        if (const Queue* queue = transport().queue(i); queue != nullptr && queue->has_buffers()) return true;
    return false;
}

// True when a buffer has come for which nobody kicks.
bool Blk::expect_kicks() {
    if (starved_) return false;
    bool come = false;
    for (size_t i = 0; i < transport().queue_count(); ++i)
        if (Queue* queue = transport().queue(i); queue != nullptr && queue->expect_kick()) come = true;
    return come;
}

unsigned Blk::reap() {
    unsigned count = ring_->reap([this](uint32_t tag, int result) { completed(tag, result); });
    for (Foreign& foreign : foreign_)
        foreign.ring.reap([&](uint32_t tag, int result) {
            const auto found = foreign.requests.find(tag);
            if (found == foreign.requests.end()) return; // nobody of ours
            const Request request = found->second;
            foreign.requests.erase(found);
            completed_elsewhere(request, result);
            ++count;
        });
    return count;
}

Deadline Blk::wake_at() const {
    return prepared_.empty() ? Deadline::never() : Deadline::after(kRetry);
}

size_t Blk::in_flight() const {
    size_t count = slots_.size() - free_.size() + carried_.size();
    for (const Foreign& foreign : foreign_)
        count += foreign.requests.size();
    return count;
}

void Blk::start(const Request& request, std::vector<iovec> data) {
    const uint32_t tag = free_.back(); // there is one: in_flight() counts all
    free_.pop_back();
    slots_[tag] = {true, request, std::move(data)};
    prepare(tag);
}

void Blk::prepare(uint32_t tag) {
    io_uring_sqe* sqe = ring_->next(); // there is one: no more than there are slots
    Slot& slot = slots_[tag];
    const Request& request = slot.request;
    const uint64_t offset = request.sector * kSectorBytes + request.done;
    const uint64_t left = request.length - request.done;
    const bool as_write = request.type == kWriteZeroes && zero_by_writing_;
    if (as_write) fill_zeroes(slot.data, left);
    const std::span<iovec> data = vectors_for(slot, tag);
    const auto vectors = static_cast<unsigned>(data.size());
    if (request.type == kRead) {
        ::io_uring_prep_readv(sqe, file_.get(), data.data(), vectors, offset);
    } else if (request.type == kWrite || as_write) {
        // A driver that cannot flush expects what it wrote to be safe (5.2.6.2).
        const int flags = transport().has(kFeatureFlush) ? 0 : RWF_DSYNC;
        ::io_uring_prep_writev2(sqe, file_.get(), data.data(), vectors, offset, flags);
    } else if (request.type == kFlush) {
        ::io_uring_prep_fsync(sqe, file_.get(), IORING_FSYNC_DATASYNC);
    } else {
        const int mode = request.type == kDiscard ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
        ::io_uring_prep_fallocate(sqe, file_.get(), mode | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
            static_cast<off_t>(left));
    }
    sqe->user_data = tag;
    if (always_async_) sqe->flags |= IOSQE_ASYNC;
    prepared_.push_back(tag);
}

// Guest RAM itself, or our own memory with the next part of what is to be written.
std::span<iovec> Blk::vectors_for(Slot& slot, uint32_t tag) {
    if (!slot.request.bounced) return {slot.data.data(), std::min(slot.data.size(), kMaxVectors)};
    if (!bounce_)
        bounce_.reset(static_cast<uint8_t*>(::aligned_alloc(kAlignment, kMaxInFlight * kBounceBytes)));
    const uint64_t left = slot.request.length - slot.request.done;
    slot.bounce = {bounce_.get() + tag * kBounceBytes, std::min<uint64_t>(left, kBounceBytes)};
    if (slot.request.type == kWrite) copy(slot.data, slot.bounce, kFromGuest);
    return {&slot.bounce, 1};
}

void Blk::submit() {
    if (prepared_.empty()) return;
    const unsigned taken = ring_->submit();
    submitted_ += taken;
    prepared_.erase(prepared_.begin(), prepared_.begin() + taken);
}

void Blk::completed(uint32_t tag, int result) {
    Slot& slot = slots_[tag];
    const Request& request = slot.request;
    const bool moves =
        request.type == kRead || request.type == kWrite || (request.type == kWriteZeroes && zero_by_writing_);
    if (!request.orphan) {
        if (moves && request.type != kWriteZeroes && result == -EINVAL &&
            !request.bounced) { // O_DIRECT, of buffers that it does not like
            slot.request.bounced = true;
            return prepare(tag);
        }
        if (request.type == kRead && request.bounced && result > 0)
            copy(slot.data, {slot.bounce.iov_base, static_cast<size_t>(result)}, kToGuest);
        if (moves && result > 0 && request.done + static_cast<uint64_t>(result) < request.length) {
            slot.request.done += static_cast<uint64_t>(result);
            drop_front(slot.data, static_cast<uint64_t>(result));
            return prepare(tag);
        }
        if (result == -EAGAIN || result == -EINTR) return prepare(tag);
        if (request.type == kWriteZeroes && !zero_by_writing_ &&
            (result == -EOPNOTSUPP || result == -EINVAL)) {
            zero_by_writing_ = true; // this file system cannot do it
            return prepare(tag);
        }
    }
    finish(request, judge_result(request, result));
    slot.used = false;
    slot.data.clear();
    free_.push_back(tag);
}

uint8_t Blk::judge_result(const Request& request, int result) {
    if (request.type == kDiscard && result == -EOPNOTSUPP) return kOk; // it is a hint
    if (result < 0) return kIoError;
    const bool moves = request.type == kRead || request.type == kWrite;
    if (moves && request.done + static_cast<uint64_t>(result) != request.length) return kIoError;
    return kOk;
}

void Blk::finish(const Request& request, uint8_t status) {
    if (request.orphan) return;
    Queue* queue = transport().queue(request.queue);
    const auto place = memory().at(request.status_gpa, 1);
    if (queue == nullptr || !place) return;
    (*place)[0] = status;
    const bool read = request.type == kRead && status == kOk;
    const uint64_t data = request.type == kGetId ? kIdBytes : read ? request.length : 0;
    queue->push(request.head, static_cast<uint32_t>(data + 1));
    touched_[request.queue] = 1;
}

// Requests that came with the guest go where they belong.
void Blk::settle_carried() {
    const auto carried = std::exchange(carried_, {});
    for (const Carried& each : carried) {
        const auto found = std::find_if(foreign_.begin(), foreign_.end(),
            [&](const Foreign& foreign) { return foreign.ring.id() == each.ring; });
        if (found != foreign_.end())
            found->requests.emplace(each.tag, each.request);
        else
            restart(each.request);
    }
}

// The process that had submitted it may have died: then the kernel ends with an error what it had not begun.
// It is done with the request either way, so that carrying it out once more is safe.
void Blk::completed_elsewhere(const Request& before, int result) {
    Request request = before;
    if (request.orphan) return;
    if (request.type == kRead && request.bounced) return restart(request);
    if (request.type == kRead || request.type == kWrite) {
        if (result > 0) request.done += static_cast<uint64_t>(result);
        if (result > 0 && request.done == request.length) return finish(request, kOk);
        return restart(request);
    }
    // What was zeroed by writing came in parts, of which this was one: all of it once more.
    if (result == 0) return finish(request, kOk);
    restart(request);
}

void Blk::restart(Request request) {
    if (request.orphan) return;
    std::vector<iovec> data;
    if (request.type == kRead || request.type == kWrite) {
        Queue* queue = transport().queue(request.queue);
        if (queue == nullptr) return;
        if (!queue->walk(request.head, chain_)) return finish(request, kIoError);
        const bool read = request.type == kRead;
        std::array<uint8_t, sizeof(RequestHeader)> header{};
        if (!take_front(chain_.readable, header)) return finish(request, kIoError);
        const uint64_t bytes =
            read ? chain_.writable_bytes - 1 : chain_.readable_bytes - sizeof(RequestHeader);
        if (bytes != request.length) return finish(request, kIoError);
        uint64_t left = request.length; // without the result's byte
        for (const Segment& segment : read ? chain_.writable : chain_.readable) {
            const uint64_t part = std::min<uint64_t>(left, segment.bytes.size());
            if (part > 0) data.push_back({segment.bytes.data(), part});
            left -= part;
        }
        drop_front(data, request.done);
    }
    start(request, std::move(data));
}

void Blk::drop_idle_rings() {
    if (!carried_.empty()) return;
    for (auto it = foreign_.begin(); it != foreign_.end();) {
        if (!it->requests.empty()) {
            ++it;
            continue;
        }
        worker().unwatch(it->ring.fd());
        it = foreign_.erase(it);
    }
}

} // namespace liveupdate::vmm::virtio
