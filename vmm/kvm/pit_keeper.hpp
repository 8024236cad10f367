// Keeps the PIT's channel 0 in step across an update.
//
// KVM tells the PIT's registers but not how many interrupts it still owes a slow guest, and setting the
// registers starts a whole period anew and forgets the debt. So this class remembers since when, in
// CLOCK_MONOTONIC, the timer has been counting, and how many interrupts the guest has ended, which KVM tells
// by a resample fd; both cross in the state. Periods less ends is what the guest is owed, whoever lost it.
// After a load the timer is set once more at the next boundary of a period, so that its phase is the old one.
//
// Usually KVM itself remembers what the guest has not taken and raises it again, one after the other. What it
// forgot at a load it cannot be told; so until the guest has caught up KVM is asked not to remember
// (KVM_REINJECT_CONTROL), and the keeper pays: it looks twice in each period, and whenever the guest has
// ended one, and raises what is owed. An interrupt raised here may meet a tick of KVM's own before the guest
// has taken either: the line is an edge, and the two become one. One end less is counted, so one more stays
// owed, and is raised again. A guest that falls behind meanwhile gets more from KVM: the keeper leaves it
// to KVM for a while, remembers its own debt, and tries again.
//
// A guest that masks the line ends nothing, and is owed nothing. From expect_freeze() on the keeper looks for
// a moment with nothing owed; what stood still all the time is a mistake (unended_floor.hpp).
//
// What cannot be known: when the guest itself programmed the timer. The first update after that may make
// one tick late by up to a period; a one-shot count (modes 0, 1 and 4) is begun again. Where KVM cannot
// count ends, what it owes is lost with an update.
//
// Session thread only, except freeze() and thaw(), which whoever stops or starts the guest calls.
#pragma once

#include <cstdint>
#include <mutex>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"
#include "vmm/kvm/unended_floor.hpp"
#include "vmm/kvm/vcpu_state.pb.h"
#include "vmm/kvm/vm.hpp"

namespace liveupdate::vmm {

class PitKeeper {
public:
    // Once, before the first vCPU runs. Where KVM cannot count, ticks that it owes are lost at a freeze.
    Result<void> count_ticks(const Vm& vm);
    // A guest is going to be loaded into this VM, which has not run.
    void expect_thaw(const Vm& vm);
    // An update begins, and is over for a guest that stays.
    void expect_freeze(const Vm& vm);
    void expect_none();
    // All vCPUs stand still: reads the PIT and stops its timer, so that no tick falls into the gap.
    Result<void> freeze(const Vm& vm, state::Pit& out);
    // The vCPUs are about to run: starts the timer from a saved state.
    Result<void> thaw(const Vm& vm, const state::Pit& in);

    static Result<void> check(const state::Pit& in);

    // When due() wants to be called: then, or as soon as the fd, if there is one (-1: none), can be read.
    Deadline wake_at() const;
    int wake_fd() const;
    void due(const Vm& vm);

private:
    struct Running {
        uint64_t reference_ns = 0; // when the first period began
        uint64_t set_ns = 0;       // when KVM's timer was last set
        uint32_t count = 0;        // what it was set to: another value is the guest's doing
        uint32_t mode = 0;
    };
    // All with mutex_ held.
    void follow(const kvm_pit_state2& pit, uint64_t now);
    bool is_ours(const kvm_pit_state2& pit) const;
    int64_t periods_since(uint64_t then, uint64_t now) const;
    int64_t owed(uint64_t now) const; // due, and not ended
    // Raised, and not ended: at most; while KVM remembers, with what it will raise.
    int64_t in_flight(uint64_t now) const;
    void count_acks();
    void raise(const Vm& vm, uint64_t now);
    void look(const Vm& vm, const kvm_pit_state2& pit, uint64_t now);
    void restart(const Vm& vm, const kvm_pit_state2& pit);
    void take_stock(const Vm& vm, uint64_t now);
    void take_over(const Vm& vm);
    void hand_back(const Vm& vm, uint64_t now);
    bool masked_for_long(const Vm& vm, uint64_t now);
    bool plausible(uint64_t now) const;
    bool worth_trying(uint64_t now);
    void forget(int64_t count, uint64_t now); // none when negative
    void set_in_flight(int64_t count, uint64_t now);
    void begin_doubt(uint64_t now);

    mutable std::mutex mutex_;
    Running running_;
    kvm_pit_state2 loaded_{};
    uint64_t next_look_ns_ = 0; // 0: nothing to do
    uint64_t boundary_ns_ = 0;  // when the timer may be set once more
    bool in_phase_ = true;      // KVM's timer has been set at a boundary, or by the guest

    UniqueFd trigger_; // of the resample irqfd; never written
    UniqueFd acks_;    // eventfd: interrupts that the guest has ended, not yet counted
    // Since reference_ns.
    int64_t ended_ = 0;          // by the guest, or forgotten
    int64_t raised_ = 0;         // before set_ns, and those raised here
    bool paying_ = false;        // KVM remembers nothing
    bool verifying_ = false;     // KVM remembers again; something may have been lost at that moment
    bool expecting_ = false;     // an update is under way
    uint64_t rest_until_ns_ = 0; // KVM remembers, but the keeper owes what was lost before
    uint64_t tried_ns_ = 0;
    int64_t owed_when_tried_ = 0;
    bool audited_ = false; // what was not ended before anybody looked has been forgotten

    // Since begin_doubt().
    bool clean_ = false; // there was a moment with nothing owed
    uint64_t doubt_ns_ = 0;
    uint64_t masked_ns_ = 0; // since when the line has been masked whenever it was looked; 0: it was not
    int64_t acks_seen_ = 0;
    int64_t acks_seen_at_doubt_ = 0;
    UnendedFloor floor_;
};

} // namespace liveupdate::vmm
