// CPUID and TSC offsets of a running guest, as they are told to a destination.
#pragma once

#include <string>
#include <vector>

#include "handoff/base/result.hpp"
#include "vmm/kvm/cpu_template.hpp"
#include "vmm/kvm/vcpu.hpp"

namespace liveupdate::vmm {

struct FixedState {
    Cpuid cpuid;                      // of vCPU 0
    std::vector<int64_t> tsc_offsets; // by vCPU, or empty
};

std::string save_fixed_state(const Cpuid& cpuid, const std::vector<std::unique_ptr<Vcpu>>& vcpus);

// From a peer: bounded and complete, or refused.
Result<FixedState> load_fixed_state(const std::string& bytes, unsigned vcpus);

} // namespace liveupdate::vmm
