// A guest that comes out of a file: its clocks stood still while nobody had it.
//
// Saved state tells times by the host's clocks, because an update has one host and no gap. Between a save and
// a restore there may be days and a reboot. So what is told by the host's clocks is moved on by what these
// have counted since, and from then on the state is that of a guest that was stopped just now.
#pragma once

#include <cstdint>

#include "vmm/kvm/vcpu_state.pb.h"

namespace liveupdate::vmm {

// Modulo 2^64: a host that has been started anew counts from 0 again.
struct ClockShift {
    uint64_t monotonic_ns = 0;
    uint64_t tsc = 0;

    // From clocks that were read together then to now.
    static ClockShift since(uint64_t monotonic, uint64_t tsc);

    void move(state::Vcpu& vcpu) const;
    void move(state::VcpuInterrupts& interrupts) const;
    void move(state::Vm& vm) const;
};

} // namespace liveupdate::vmm
