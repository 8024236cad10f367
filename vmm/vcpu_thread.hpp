// The thread of one vCPU. It enters KVM_RUN only while this process holds the baton.
//
//            start(arrive)                     ask_stop(job)
//   (none) ───────────────► arriving ──► running ───────────► stopping ──► standing
//                              │ false      ▲                  job->run()     │
//                              ▼            └───────────── resume() ──────────┘
//                            ended  ◄──────────────── quit() from anywhere
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "handoff/baton.hpp"
#include "vmm/machine.hpp"

namespace liveupdate::vmm {

// Work for each vCPU's own thread once it has left KVM_RUN and nothing of its last exit is pending.
class StopJob {
public:
    virtual ~StopJob() = default;
    virtual void run(Vcpu& vcpu) = 0;
};

class VcpuThread {
public:
    // Borrowed objects outlive the thread.
    VcpuThread(Machine& machine, Vcpu& vcpu, const handoff::Baton& baton, handoff::Participant me);
    ~VcpuThread(); // quits and joins

    // `arrive` runs first, on the vCPU's thread; the guest runs when it returns true.
    void start(std::function<bool()> arrive);
    void ask_stop(std::shared_ptr<StopJob> job);
    void resume();
    void quit();

    uint64_t exits() const { return exits_.load(std::memory_order_relaxed); }
    uint64_t cpu_ns() const; // time this thread has run

private:
    enum class Order : uint32_t { kRun = 0, kStop = 1, kQuit = 2 };
    static Order order_of(uint32_t word) { return static_cast<Order>(word & 3); }

    void main(const std::function<bool()>& arrive);
    bool let_enter(uint32_t seen);
    void run_guest(uint32_t epoch);
    bool handle_exit();
    void stand(uint32_t seen);
    void complete_pending();
    void give(Order order);
    void kick();

    Machine& machine_;
    Vcpu& vcpu_;
    const handoff::Baton& baton_;
    const handoff::Participant me_;
    // The order in the low two bits, above them a count of orders: one that is soon followed by its opposite
    // is still seen as a change.
    std::atomic<uint32_t> order_{0};
    std::atomic<uint64_t> exits_{0};
    bool io_pending_ = false; // the last exit is completed by the next KVM_RUN
    std::mutex job_mutex_;
    std::shared_ptr<StopJob> job_;
    std::thread thread_;
};

// Once per process: the signal that kicks vCPUs out of KVM_RUN.
void install_kick_signal();
int kick_signal();

} // namespace liveupdate::vmm
