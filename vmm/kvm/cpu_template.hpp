// CPU templates: what CPUID shows the guest, by name. A template never changes once it has shipped; a new
// need is a new name. The table that a guest was started with crosses every update, so what a later build
// thinks of a name does not matter to a guest that runs.
#pragma once

#include <linux/kvm.h>

#include <string>
#include <string_view>
#include <vector>

#include "handoff/base/result.hpp"

namespace liveupdate::vmm {

using Cpuid = std::vector<kvm_cpuid_entry2>;

inline constexpr std::string_view kDefaultCpuTemplate = "x86-64-v2.1";

// psABI level and a revision: "x86-64-v2.1", "x86-64-v3.1".
std::vector<std::string> cpu_template_names();

struct CpuTemplateRequest {
    std::string name;
    const Cpuid* supported = nullptr; // what KVM_GET_SUPPORTED_CPUID says
    unsigned vcpus = 1;
    uint32_t tsc_khz = 0;     // shown in leaf 0x40000010
    bool tsc_deadline = true; // KVM_CAP_TSC_DEADLINE_TIMER
};

// The table for vCPU 0. Unknown names are refused with the list of known ones.
Result<Cpuid> apply_cpu_template(const CpuTemplateRequest& request);

// The same table as vCPU `index` sees it: APIC ids in leaves 1 and 0xB.
Cpuid cpuid_for_vcpu(Cpuid table, unsigned index);

} // namespace liveupdate::vmm
