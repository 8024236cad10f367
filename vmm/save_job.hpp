// Saving a machine: each vCPU on its own thread, all at once; the last one to stop saves what they share.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <optional>

#include "handoff/transfer.hpp"
#include "vmm/machine.hpp"
#include "vmm/vcpu_thread.hpp"

namespace liveupdate::vmm {

class SaveJob final : public StopJob {
public:
    // The machine's virtio devices have been told to hold. Borrowed objects outlive finished() == true, or
    // cancel() and the threads' resume.
    // `stands` is called once, on a vCPU's thread, when nothing writes to RAM any more.
    SaveJob(
        Machine& machine, handoff::Outgoing& out, Deadline deadline, std::function<Result<void>()> stands);

    void run(Vcpu& vcpu) override;

    // Waits until every vCPU is done; the first error of any.
    Result<void> wait(Deadline deadline);
    // Releases vCPUs that wait for one that does not come; then waits for those that have begun. One that
    // comes later does nothing.
    void cancel();

    // The PIT as it was when it was stopped, if it was.
    const std::optional<state::Pit>& frozen_pit() const { return frozen_pit_; }

private:
    enum Barrier : uint32_t { kClosed, kOpen, kCancelled };
    Result<void> save(Vcpu& vcpu);
    Result<void> save_shared();
    bool meet();
    void fail(Error error);

    Machine& machine_;
    handoff::Outgoing& out_;
    const Deadline deadline_;
    const std::function<Result<void>()> stands_;
    const size_t vcpus_;
    std::atomic<size_t> arrived_{0};
    std::atomic<uint32_t> barrier_{kClosed};
    std::atomic<uint32_t> begun_{0};
    std::atomic<bool> cancelled_{false};
    std::atomic<uint32_t> finished_{0};
    std::optional<state::Pit> frozen_pit_;
    std::mutex error_mutex_;
    std::optional<Error> error_;
};

} // namespace liveupdate::vmm
