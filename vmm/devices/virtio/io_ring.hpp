// An io_uring of our own, and the completions of one that another process has submitted to.
//
// Why that works, and what the kernel does when a submitter ends: docs/io-across-the-switchover.md.
#pragma once

#include <liburing.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"

namespace liveupdate::vmm::virtio {

inline constexpr uint32_t kRingEntries = 256;
inline constexpr uint32_t kCompletionEntries = 2 * kRingEntries; // never overflows: see Blk::kMaxInFlight

class IoRing {
public:
    // Refused by kernels without io_uring, or where it is forbidden: the words say so.
    static Result<std::unique_ptr<IoRing>> create();
    ~IoRing() { ::io_uring_queue_exit(&ring_); }
    IoRing(const IoRing&) = delete;
    IoRing& operator=(const IoRing&) = delete;

    int fd() const { return ring_.ring_fd; }
    // Null while as many as there are entries have been prepared and not submitted.
    io_uring_sqe* next() { return ::io_uring_get_sqe(&ring_); }
    // How many of the prepared ones the kernel has taken, oldest first.
    unsigned submit();
    // Takes the completions that are there: tag and result.
    template <typename Take>
    unsigned reap(Take take) {
        unsigned count = 0;
        io_uring_cqe* cqe = nullptr;
        while (::io_uring_peek_cqe(&ring_, &cqe) == 0) {
            const auto tag = static_cast<uint32_t>(cqe->user_data);
            const int result = cqe->res;
            ::io_uring_cqe_seen(&ring_, cqe);
            take(tag, result);
            ++count;
        }
        return count;
    }
    bool has_completions() const { return ::io_uring_cq_ready(&ring_) > 0; }
    // Completions that the kernel has posted since the ring was made.
    uint32_t completed() const;

private:
    IoRing() = default;
    io_uring ring_{};
};

// The completion queue of another process's ring. That process is not trusted: it can write anything into the
// queue, and what comes out is a tag and a number.
class ForeignRing {
public:
    // `id`: which ring the saved requests call so. Refused: what is no io_uring, or a smaller one than
    // every build makes: kCompletionEntries is for ever.
    static Result<ForeignRing> map(uint32_t id, UniqueFd ring);
    ForeignRing(ForeignRing&& other) noexcept;
    ForeignRing& operator=(ForeignRing&&) = delete;
    ~ForeignRing();

    uint32_t id() const { return id_; }
    int fd() const { return fd_.get(); } // readable when there are completions

    template <typename Take>
    void reap(Take take) {
        for (unsigned i = 0; i < kCompletionEntries; ++i) {
            const uint32_t head = load(head_);
            if (head == load(tail_)) return;
            const Completion done = completion(head);
            store(head_, head + 1);
            take(done.tag, done.result);
        }
    }

private:
    struct Completion {
        uint32_t tag;
        int result;
    };
    ForeignRing(uint32_t id, UniqueFd fd) : id_(id), fd_(std::move(fd)) {}
    static uint32_t load(const uint32_t* word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
    static void store(uint32_t* word, uint32_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }
    Completion completion(uint32_t index) const;

    uint32_t id_;
    UniqueFd fd_;
    void* mapping_ = nullptr;
    size_t size_ = 0;
    uint32_t* head_ = nullptr;
    uint32_t* tail_ = nullptr;
    const io_uring_cqe* completions_ = nullptr;
};

} // namespace liveupdate::vmm::virtio
