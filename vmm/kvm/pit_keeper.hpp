// Keeps the PIT's channel 0 in step across an update.
//
// KVM tells the PIT's registers but not how many interrupts it still owes a slow guest, and setting the
// registers starts a whole period anew and forgets the debt. So this class remembers since when, in
// CLOCK_MONOTONIC, the timer has been counting, and how many periods have raised their interrupt; both cross
// in the state. After a load it raises what fell due in between and, at the next boundary of a period, sets
// the timer once more so that its phase is the old one.
//
// What KVM owes is the number of periods less the number of interrupts that the guest has ended, which KVM
// tells by a resample fd. A guest that masks the line ends none, and is owed none; so an update begins with
// expect_freeze(), from when on the keeper looks for a moment with nothing unended, and what was unended all
// the time is not owed.
//
// An interrupt that is raised here, or was in flight when the timer was set, may meet a tick of KVM's own
// before the guest has taken either: the line is an edge, and the two become one. Then one more stays unended
// for good, however often the guest ends others; that is looked for until a moment is found in which nothing
// is unended, and what was lost is raised again.
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
#include "handoff/base/unique_fd.hpp"
#include "vmm/kvm/vcpu_state.pb.h"
#include "vmm/kvm/vm.hpp"

namespace liveupdate::vmm {

class PitKeeper {
public:
    // Once, before the first vCPU runs. Where KVM cannot count, ticks that it owes are lost at a freeze.
    Result<void> count_ticks(const Vm& vm);
    // An update begins, and is over for a guest that stays.
    void expect_freeze(const Vm& vm);
    void expect_none();
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
        uint64_t delivered = 0;    // periods that had raised their interrupt at set_ns, and those raised here
        uint64_t set_ns = 0;       // when KVM's timer was last set
        uint32_t count = 0;        // what it was set to: another value is the guest's doing
        uint32_t mode = 0;
    };
    // All with mutex_ held.
    void follow(const kvm_pit_state2& pit, uint64_t now);
    bool is_ours(const kvm_pit_state2& pit) const;
    uint64_t ticks_since_set(uint64_t now) const;
    int64_t unended(uint64_t now);
    bool behind(uint64_t now) const;
    void catch_up(const Vm& vm, uint64_t now);
    void take_stock(const Vm& vm, uint64_t now);
    static bool listens(const Vm& vm);
    void write_off(int64_t unended);
    void forget_window();
    bool plausible(int64_t owed) const;
    bool restart(const Vm& vm, const kvm_pit_state2& pit, uint64_t now);

    mutable std::mutex mutex_;
    Running running_;
    kvm_pit_state2 loaded_{};
    uint64_t next_boundary_ns_ = 0; // 0: nothing to do
    bool in_phase_ = false;         // KVM's timer has been set at a boundary, or by the guest

    UniqueFd trigger_;   // of the resample irqfd; never written
    UniqueFd acks_;      // eventfd: interrupts that the guest has ended, not yet in ended_
    int64_t raised_ = 0; // interrupts before set_ns and those raised here, less those forgotten
    int64_t ended_ = 0;

    // What take_stock() has seen. `pulses_`: interrupts that KVM does not know to be in flight: its next tick
    // may have become one with each of them.
    int64_t pulses_ = 0;
    uint64_t window_ns_ = 0; // since when something has been unended whenever it was looked; 0: it was not
    int64_t least_unended_ = 0;
    int64_t ended_at_first_ = 0;
    bool clean_ = false;     // since expect_freeze() or thaw() there was a moment with nothing unended
    bool audited_ = false;   // what was unended for other reasons has been written off
    bool expecting_ = false; // stock is taken until the update is over
};

} // namespace liveupdate::vmm
