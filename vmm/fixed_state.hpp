// CPUID and TSC offsets of a running guest and descriptors of its VMM, as they are told to a destination.
#pragma once

#include <string>
#include <vector>

#include "handoff/base/result.hpp"
#include "handoff/channel.hpp"
#include "vmm/kvm/cpu_template.hpp"
#include "vmm/kvm/vcpu.hpp"

namespace liveupdate::vmm {

struct FixedState {
    Cpuid cpuid;                            // of vCPU 0
    std::vector<int64_t> tsc_offsets;       // by vCPU, or empty
    std::vector<handoff::FdToSend> to_take; // by their numbers in the source
    uint32_t tsc_khz = 0;                   // 0: unknown
};

std::string save_fixed_state(const Cpuid& cpuid, const std::vector<std::unique_ptr<Vcpu>>& vcpus,
    const std::vector<handoff::FdToSend>& to_take, uint32_t tsc_khz);

// Takes each descriptor of `to_take` out of the process behind `source`, which the supervisor vouches for,
// and adds it to `fds` under its name.
Result<void> take_from_source(
    int source, const std::vector<handoff::FdToSend>& to_take, handoff::NamedFds& fds);

// From a peer: bounded and complete, or refused.
Result<FixedState> load_fixed_state(const std::string& bytes, unsigned vcpus);

} // namespace liveupdate::vmm
