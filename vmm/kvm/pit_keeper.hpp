// Keeps the PIT's channel 0 in step across an update.
//
// KVM tells the PIT's registers but neither when its timer will next fire nor how many interrupts it still
// owes a slow guest, and setting the registers starts a whole period anew. So this class remembers since
// when, in CLOCK_MONOTONIC, the timer has been counting, and how many periods have raised their interrupt;
// both cross in the state. After a load it raises what fell due in between and, at the next boundary of a
// period, sets the timer once more so that its phase is the old one.
//
// What cannot be known: when the guest itself programmed the timer. The first update after that may make
// one tick late by up to a period; a one-shot count (modes 0, 1 and 4) is begun again.
//
// Session thread only, except freeze() and thaw(), which whoever stops or starts the guest calls.
#pragma once

#include <cstdint>
#include <mutex>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"
#include "vmm/kvm/vcpu_state.pb.h"
#include "vmm/kvm/vm.hpp"

namespace liveupdate::vmm {

class PitKeeper {
public:
    // All vCPUs stand still: reads the PIT and stops its timer, so that no tick falls into the gap.
    Result<void> freeze(const Vm& vm, state::Pit& out);
    // The vCPUs are about to run: starts the timer from a saved state.
    Result<void> thaw(const Vm& vm, const state::Pit& in);

    static Result<void> check(const state::Pit& in);

    // When due() wants to be called.
    Deadline wake_at() const;
    void due(const Vm& vm);

private:
    struct Running {
        uint64_t reference_ns = 0; // when the first period began
        uint64_t delivered = 0;    // periods that had raised their interrupt at set_ns
        uint64_t set_ns = 0;       // when KVM's timer was last set
        uint32_t count = 0;        // what it was set to: another value is the guest's doing
        uint32_t mode = 0;
    };
    void catch_up(const Vm& vm, uint64_t now);

    mutable std::mutex mutex_;
    Running running_;
    kvm_pit_state2 loaded_{};
    uint64_t next_boundary_ns_ = 0; // 0: nothing to do
};

} // namespace liveupdate::vmm
