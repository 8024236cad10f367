// The thread of one device: it waits for the device's descriptors and works in rounds. Between rounds it
// touches nothing, and whoever wants the device to stand still keeps it from beginning another one.
//
//     state word:  bit 0     a round is under way
//                  bit 31    the thread is to end
//                  others    reasons why none may begin
//
// All of it is one word, because a thread that is parked waits for a change of this word alone.
//
// A hold costs the holder one atomic operation: a worker that waits in epoll need not even wake.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"

namespace liveupdate::vmm::virtio {

// What a device does in a round, on its worker's thread. Nothing here blocks.
class WorkerClient {
public:
    virtual ~WorkerClient() = default;
    // The descriptor that was watched with `token` is ready; it may also not be any more.
    virtual void ready(uint64_t token) = 0;
    // The first thing of the first round after a hold: everything is to be looked at, because what was ready
    // before may have told another process so.
    virtual void look() = 0;
    virtual void finish_round() = 0;
    // When a round is wanted although nothing is ready.
    virtual Deadline wake_at() const = 0;
};

class Worker {
public:
    enum Reason : uint32_t {
        kUpdate = 2,    // the guest stands still, runs elsewhere, or has not come yet
        kRegisters = 4, // a vCPU thread changes what a round goes by
        kLook = 8,      // the session thread reads what rounds change
    };

    // On hold for kUpdate, and without a thread.
    explicit Worker(WorkerClient& client) : client_(client) {}
    ~Worker() { stop(); }

    // Makes the descriptors; a worker that never starts need not be opened.
    Result<void> open();
    // Any thread, once opened. `token` is not kControl. The descriptor outlives its watch.
    Result<void> watch(int fd, uint32_t epoll_events, uint64_t token);
    void unwatch(int fd);
    // Only while no update holds the worker: for what another process of the guest has open, too, which would
    // pay for telling this one's epoll of each event. Before start().
    Result<void> watch_while_free(int fd, uint32_t epoll_events, uint64_t token);

    // Starts the thread, whose first round begins with look() once nothing holds it.
    void start(const std::string& name);
    // Ends the thread after its round; held or not.
    void stop();

    // No round begins any more until unhold(); cheap, never waits.
    void hold(Reason reason);
    // For long rounds: somebody waits for this one's end.
    bool must_yield() const { return (state_.load(std::memory_order_acquire) & ~kWorking) != 0; }
    // Whether no round is under way; waits for the end of one until the deadline. After hold() only.
    bool await_held(Deadline deadline) const;
    void unhold(Reason reason);

    // In a round: how long the thread had nothing to do before it.
    std::chrono::nanoseconds slept() const { return slept_; }

private:
    static constexpr uint32_t kWorking = 1;
    static constexpr uint32_t kQuit = 1u << 31;
    static constexpr uint64_t kControl = UINT64_MAX;

    void main();
    bool begin_round();
    void watch_shared();
    void unwatch_shared();
    void end_round();
    void wake();
    bool is_ending() const { return (state_.load(std::memory_order_acquire) & kQuit) != 0; }

    WorkerClient& client_;
    UniqueFd epoll_;
    UniqueFd control_;
    std::atomic<uint32_t> state_{kUpdate};
    std::atomic<bool> look_{true};
    struct Watch {
        int fd = -1;
        uint32_t epoll_events = 0;
        uint64_t token = 0;
    };
    std::vector<Watch> shared_;
    bool shared_watched_ = false;                                      // the thread's own
    std::chrono::nanoseconds slept_ = std::chrono::nanoseconds::max(); // the thread's own
    std::thread thread_;
};

// Keeps a worker from rounds for a moment; one holder for each reason at a time.
class BriefHold {
public:
    BriefHold(Worker& worker, Worker::Reason reason) : worker_(worker), reason_(reason) {
        worker_.hold(reason_);
        static_cast<void>(worker_.await_held(Deadline::never()));
    }
    ~BriefHold() { worker_.unhold(reason_); }
    BriefHold(const BriefHold&) = delete;
    BriefHold& operator=(const BriefHold&) = delete;

private:
    Worker& worker_;
    const Worker::Reason reason_;
};

} // namespace liveupdate::vmm::virtio
