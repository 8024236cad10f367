// Loading a machine: each vCPU on its own thread as soon as its section is there; vCPU 0's thread also loads
// what the vCPUs share.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "handoff/transfer.hpp"
#include "vmm/kvm/clock_shift.hpp"
#include "vmm/machine.hpp"

namespace liveupdate::vmm {

class LoadJob {
public:
    // `shift`: of a guest that comes out of a file.
    LoadJob(Machine& machine, std::shared_ptr<handoff::Incoming> in, ClockShift shift);

    // On the vCPU's own thread. True when this process owns the guest and the vCPU may enter it.
    bool arrive(Vcpu& vcpu);
    // Before the source pauses: waits until every vCPU's thread is ready for the guest, or one never will be.
    Result<void> await_ready(Deadline deadline) const;

    // A rehearsal: everything, in the caller's thread; nothing is taken or entered. The vCPUs' registers.
    static Result<std::vector<state::Vcpu>> load_all(Machine& machine, handoff::Incoming& in);

private:
    enum Shared : uint32_t { kWaiting, kLoaded, kFailed };
    bool get_ready(Vcpu& vcpu);
    Result<bool> load(Vcpu& vcpu);
    static Result<state::Vcpu> load_registers(Vcpu& vcpu, handoff::Incoming& in, ClockShift shift);
    Result<void> load_shared();
    Result<void> await_shared();

    Machine& machine_;
    std::shared_ptr<handoff::Incoming> in_;
    const ClockShift shift_;
    std::atomic<uint32_t> ready_{0}; // vCPUs that have tried to get ready
    mutable std::mutex error_mutex_;
    std::optional<Error> error_;
    std::atomic<uint32_t> shared_{kWaiting};
    std::optional<state::Pit> pit_;
};

} // namespace liveupdate::vmm
