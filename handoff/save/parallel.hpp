// Chunks of a RAM block, done by several threads.
#pragma once

#include <poll.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "handoff/base/result.hpp"
#include "handoff/save/io_queue.hpp"

namespace liveupdate::handoff::save {

// How the file is read or written.
struct IoOptions {
    // More than the CPUs that are busy: while one fills page tables or sums, the requests of others go on.
    unsigned threads = 4;
    unsigned depth = 8; // requests in flight of each thread
    Engine engine = Engine::kRing;
    int cancel_fd = -1;                                           // readable: stop, with kAborted
    std::chrono::milliseconds silence = std::chrono::seconds(30); // of an NBD server, before it is given up
};

// Whether a thread has begun so much that it should finish its oldest chunk: beside that, `requests` fill its
// queue. More would only take memory from the caches.
constexpr bool are_enough(size_t chunks, size_t requests, unsigned depth) {
    return requests >= depth || chunks > depth;
}
constexpr unsigned most_chunks(unsigned depth) {
    return depth + 1;
}

// Hands out 0, 1, 2… until there are no more, or one thread has failed.
class Work {
public:
    explicit Work(uint64_t count, int cancel_fd = -1) : count_(count), cancel_fd_(cancel_fd) {}
    uint64_t count() const { return count_; }
    bool take(uint64_t& item) {
        item = next_.fetch_add(1, std::memory_order_relaxed);
        pollfd cancel{cancel_fd_, POLLIN, 0};
        if (cancel_fd_ >= 0 && ::poll(&cancel, 1, 0) == 1)
            fail({ErrorCode::kAborted, "somebody asked for the work to stop"});
        return item < count_ && !failed_.load(std::memory_order_relaxed);
    }
    void fail(Error error) {
        const std::lock_guard lock(mutex_);
        if (!failed_.exchange(true)) error_ = std::move(error);
    }
    Result<void> result() const {
        if (failed_) return error_;
        return {};
    }

private:
    const uint64_t count_;
    const int cancel_fd_;
    std::atomic<uint64_t> next_{0};
    std::atomic<bool> failed_{false};
    std::mutex mutex_;
    Error error_{ErrorCode::kInternal, ""};
};

// Runs `body`, which takes from `work` until there is nothing left, in so many threads, but in no more than
// find something to do: a guest may stand still meanwhile. The first error.
inline Result<void> in_threads(unsigned threads, Work& work, const std::function<Result<void>()>& body) {
    const auto guarded = [&] {
        if (auto done = body(); !done) work.fail(std::move(done).error());
    };
    std::vector<std::thread> helpers;
    for (unsigned i = 1; i < threads && i < work.count(); ++i)
        helpers.emplace_back(guarded);
    if (work.count() > 0) guarded();
    for (std::thread& helper : helpers)
        helper.join();
    return work.result();
}

} // namespace liveupdate::handoff::save
