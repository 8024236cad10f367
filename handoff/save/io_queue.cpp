#include "handoff/save/io_queue.hpp"

#include <fcntl.h>
#include <liburing.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "handoff/base/fd.hpp"

namespace liveupdate::handoff::save {

Result<std::unique_ptr<DirectFile>> DirectFile::open(const std::string& path, int flags, mode_t mode) {
    auto file = std::make_unique<DirectFile>();
    file->path_ = path;
    auto opened = fd::open(path, flags | O_DIRECT, mode);
    file->direct_ = opened.has_value();
    if (!opened && opened.error().system_errno == EINVAL) opened = fd::open(path, flags, mode);
    if (!opened) return std::move(opened).error();
    file->file_ = std::move(opened).value();
    return file;
}

Result<std::unique_ptr<DirectFile>> DirectFile::adopt(UniqueFd opened, std::string name) {
    auto file = std::make_unique<DirectFile>();
    const int flags = ::fcntl(opened.get(), F_GETFL);
    if (flags < 0) return Error::from_errno("look at " + name);
    file->direct_ = (flags & O_DIRECT) != 0;
    file->path_ = std::move(name);
    file->file_ = std::move(opened);
    return file;
}

Result<void> DirectFile::give_up_direct() {
    const int flags = ::fcntl(fd(), F_GETFL);
    if (flags < 0 || ::fcntl(fd(), F_SETFL, flags & ~O_DIRECT) < 0)
        return Error::from_errno("go on without O_DIRECT in " + path_);
    direct_ = false;
    return {};
}

struct IoQueue::Request {
    Way way{};
    uint64_t offset = 0;
    std::byte* at = nullptr;
    size_t left = 0;
    uint32_t* pending = nullptr;
    bool direct = false; // when it was begun last
};

struct IoQueue::Ring {
    io_uring ring{};
    unsigned in_flight = 0;
    bool made = false;
    ~Ring() {
        if (made) ::io_uring_queue_exit(&ring);
    }
};

IoQueue::IoQueue(DirectFile& file, unsigned depth, Engine wanted)
    : file_(file), requests_(std::max(1u, depth)) {
    for (Request& request : requests_)
        free_.push_back(&request);
    if (wanted != Engine::kRing) return;
    ring_ = std::make_unique<Ring>();
    ring_->made = ::io_uring_queue_init(static_cast<unsigned>(requests_.size()), &ring_->ring, 0) == 0;
    if (!ring_->made) ring_.reset();
}

IoQueue::~IoQueue() {
    static_cast<void>(await_all());
}

Engine IoQueue::engine() const {
    return ring_ ? Engine::kRing : Engine::kCalls;
}

Result<void> IoQueue::read(uint64_t offset, std::span<std::byte> into, uint32_t& pending) {
    return begin(Way::kRead, offset, into.data(), into.size(), pending);
}

Result<void> IoQueue::write(uint64_t offset, std::span<const std::byte> from, uint32_t& pending) {
    return begin(Way::kWrite, offset, const_cast<std::byte*>(from.data()), from.size(), pending);
}

Result<void> IoQueue::begin(Way way, uint64_t offset, std::byte* at, size_t size, uint32_t& pending) {
    Request now{way, offset, at, size, &pending, false};
    if (!ring_) {
        ++pending;
        return do_now(now);
    }
    while (free_.empty())
        TRY(reap_one());
    Request& request = *free_.back();
    free_.pop_back();
    request = now;
    ++pending;
    return submit(request);
}

Result<void> IoQueue::submit(Request& request) {
    io_uring_sqe* const sqe = ::io_uring_get_sqe(&ring_->ring);
    if (sqe == nullptr) return Error(ErrorCode::kInternal, "an io_uring has no room for a request");
    request.direct = file_.direct();
    const auto size = static_cast<unsigned>(request.left);
    if (request.way == Way::kRead)
        ::io_uring_prep_read(sqe, file_.fd(), request.at, size, request.offset);
    else
        ::io_uring_prep_write(sqe, file_.fd(), request.at, size, request.offset);
    ::io_uring_sqe_set_data(sqe, &request);
    ++ring_->in_flight;
    for (;;) {
        const int submitted = ::io_uring_submit(&ring_->ring);
        if (submitted >= 0) return {};
        if (submitted == -EINTR || submitted == -EAGAIN) continue;
        --ring_->in_flight;
        return failed(request, -submitted);
    }
}

Result<void> IoQueue::reap_one() {
    io_uring_cqe* cqe = nullptr;
    for (;;) {
        const int waited = ::io_uring_wait_cqe(&ring_->ring, &cqe);
        if (waited == 0) break;
        if (waited != -EINTR && waited != -EAGAIN)
            return Error(
                ErrorCode::kSystem, "wait for " + file_.path() + ": " + std::strerror(-waited), -waited);
    }
    auto& request = *static_cast<Request*>(::io_uring_cqe_get_data(cqe));
    const ssize_t result = cqe->res;
    ::io_uring_cqe_seen(&ring_->ring, cqe);
    --ring_->in_flight;
    auto done = ended(request, result);
    if (done && request.left > 0) return submit(request);
    --*request.pending;
    free_.push_back(&request);
    return done;
}

// What a read or write has come to. More is left to do when `left` is not 0.
Result<void> IoQueue::ended(Request& request, ssize_t result) {
    if (result == -EINTR || result == -EAGAIN) return {};
    if (result == -EINVAL && request.direct) // of several in flight the first gives it up for all
        return file_.direct() ? file_.give_up_direct() : Result<void>();
    if (result < 0) return failed(request, static_cast<int>(-result));
    if (result == 0)
        return Error(ErrorCode::kRefused,
            file_.path() + " ends at " + std::to_string(request.offset) + ", before what is looked for");
    const size_t done = std::min(static_cast<size_t>(result), request.left);
    request.at += done;
    request.offset += done;
    request.left -= done;
    return {};
}

Result<void> IoQueue::do_now(Request& request) {
    while (request.left > 0) {
        request.direct = file_.direct();
        const auto at = static_cast<off_t>(request.offset);
        const ssize_t result = request.way == Way::kRead ? ::pread(file_.fd(), request.at, request.left, at)
                                                         : ::pwrite(file_.fd(), request.at, request.left, at);
        TRY(ended(request, result < 0 ? -errno : result));
    }
    --*request.pending;
    return {};
}

Error IoQueue::failed(const Request& request, int problem) const {
    const char* const what = request.way == Way::kRead ? "read " : "write ";
    return {ErrorCode::kSystem,
        what + file_.path() + " at " + std::to_string(request.offset) + ": " + std::strerror(problem),
        problem};
}

Result<void> IoQueue::await(const uint32_t& pending) {
    while (pending > 0)
        TRY(reap_one());
    return {};
}

Result<void> IoQueue::await_all() {
    Result<void> first;
    while (ring_ && ring_->in_flight > 0) {
        const unsigned before = ring_->in_flight;
        auto reaped = reap_one();
        const bool stuck = !reaped && ring_->in_flight == before;
        if (!reaped && first) first = std::move(reaped);
        if (stuck) break;
    }
    return first;
}

} // namespace liveupdate::handoff::save
