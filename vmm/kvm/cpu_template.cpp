#include "vmm/kvm/cpu_template.hpp"

#include <algorithm>
#include <array>
#include <bit>

namespace liveupdate::vmm {
namespace {

// Bits by leaf (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E).
struct LeafMask {
    uint32_t function;
    uint32_t index;
    uint32_t eax, ebx, ecx, edx;
};

constexpr uint32_t bits(std::initializer_list<unsigned> numbers) {
    uint32_t mask = 0;
    for (const unsigned n : numbers)
        mask |= 1u << n;
    return mask;
}

constexpr uint32_t kAll = ~0u;
constexpr uint32_t kHypervisor = 1u << 31, kTscDeadline = 1u << 24, kX2apic = 1u << 21;
// FPU to CLFLUSH, MMX, FXSR, SSE, SSE2, HTT.
constexpr uint32_t kLeaf1Edx =
    bits({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26, 28});
// SSE3, PCLMULQDQ, SSSE3, CX16, SSE4.1, SSE4.2, x2APIC, POPCNT, TSC deadline, AES, XSAVE, RDRAND, hypervisor.
constexpr uint32_t kV2Leaf1Ecx =
    bits({0, 1, 9, 13, 19, 20, 23, 25, 26, 30}) | kX2apic | kTscDeadline | kHypervisor;
// and FMA, MOVBE, AVX, F16C.
constexpr uint32_t kV3Leaf1Ecx = kV2Leaf1Ecx | bits({12, 22, 28, 29});
// FSGSBASE, SMEP, ERMS, RDSEED, SMAP, CLFLUSHOPT.
constexpr uint32_t kV2Leaf7Ebx = bits({0, 7, 9, 18, 20, 23});
// and BMI1, AVX2, BMI2, INVPCID, ADX.
constexpr uint32_t kV3Leaf7Ebx = kV2Leaf7Ebx | bits({3, 5, 8, 10, 19});
// MD_CLEAR, SPEC_CTRL, STIBP, ARCH_CAPABILITIES, SSBD: mitigations that the guest should see.
constexpr uint32_t kLeaf7Edx = bits({10, 26, 27, 29, 31});
// SYSCALL, NX, 1 GiB pages, RDTSCP, LM and the copies of leaf 1 that AMD shows.
constexpr uint32_t kExtEdx = kLeaf1Edx | bits({11, 20, 26, 27, 29});
constexpr uint32_t kExtEcx = bits({0, 5, 8});
// XSAVEERPTR, without which a guest on AMD clears the FPU's error pointers by hand at each switch of tasks;
// IBPB, IBRS, STIBP, SSBD.
constexpr uint32_t kLeaf80000008Ebx = bits({2, 12, 14, 15, 24});

struct Template {
    std::string_view name;
    uint32_t leaf1_ecx, leaf7_ebx, xcr0;
};
constexpr std::array kTemplates = {
    Template{"x86-64-v2.1", kV2Leaf1Ecx, kV2Leaf7Ebx, 0x3},
    Template{"x86-64-v3.1", kV3Leaf1Ecx, kV3Leaf7Ebx, 0x7},
};

// A leaf that is not named here is not shown at all.
std::vector<LeafMask> masks_of(const Template& t) {
    return {
        {0x0, 0, kAll, kAll, kAll, kAll},
        {0x1, 0, kAll, kAll, t.leaf1_ecx, kLeaf1Edx},
        {0x2, 0, kAll, kAll, kAll, kAll},
        {0x7, 0, 0, t.leaf7_ebx, 0, kLeaf7Edx},
        {0xd, 0, t.xcr0, kAll, kAll, 0},
        {0xd, 1, bits({0}), 0, 0, 0}, // XSAVEOPT
        {0xd, 2, (t.xcr0 & 4) != 0 ? kAll : 0, kAll, kAll, kAll},
        {0x15, 0, kAll, kAll, kAll, 0},
        {0x16, 0, kAll, kAll, kAll, 0},
        {0x40000000, 0, kAll, kAll, kAll, kAll},
        {0x40000001, 0, kAll, 0, 0, kAll},
        {0x80000000, 0, kAll, kAll, kAll, kAll},
        {0x80000001, 0, kAll, kAll, kExtEcx, kExtEdx},
        {0x80000002, 0, kAll, kAll, kAll, kAll},
        {0x80000003, 0, kAll, kAll, kAll, kAll},
        {0x80000004, 0, kAll, kAll, kAll, kAll},
        {0x80000005, 0, kAll, kAll, kAll, kAll},
        {0x80000006, 0, kAll, kAll, kAll, kAll},
        {0x80000007, 0, 0, 0, 0, bits({8})}, // invariant TSC
        {0x80000008, 0, kAll, kLeaf80000008Ebx, 0, 0},
    };
}

const LeafMask* find_mask(const std::vector<LeafMask>& masks, const kvm_cpuid_entry2& e) {
    const auto found = std::find_if(masks.begin(), masks.end(), [&](const LeafMask& m) {
        return m.function == e.function &&
               ((e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) == 0 || m.index == e.index);
    });
    return found == masks.end() ? nullptr : &*found;
}

kvm_cpuid_entry2& entry(Cpuid& table, uint32_t function) {
    const auto found =
        std::find_if(table.begin(), table.end(), [&](const auto& e) { return e.function == function; });
    if (found != table.end()) return *found;
    kvm_cpuid_entry2 fresh{};
    fresh.function = function;
    table.push_back(fresh);
    return table.back();
}

// The flat topology: one package, one thread a core.
void add_topology(Cpuid& table, unsigned vcpus) {
    auto& leaf1 = entry(table, 1);
    leaf1.ebx = (leaf1.ebx & 0x0000ffff) | std::min(vcpus, 255u) << 16;
    if (vcpus < 2) leaf1.edx &= ~(1u << 28);
    const auto width = static_cast<uint32_t>(std::bit_width(vcpus - 1));
    for (uint32_t index = 0; index < 2; ++index) {
        kvm_cpuid_entry2 e{};
        e.function = 0xb;
        e.index = index;
        e.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        e.eax = index == 0 ? 0 : width;
        e.ebx = index == 0 ? 1 : vcpus;
        e.ecx = index | (index == 0 ? 1u : 2u) << 8;
        table.push_back(e);
    }
}

} // namespace

std::vector<std::string> cpu_template_names() {
    std::vector<std::string> names;
    for (const Template& t : kTemplates)
        names.emplace_back(t.name);
    return names;
}

Result<Cpuid> apply_cpu_template(const CpuTemplateRequest& request) {
    const auto found = std::find_if(
        kTemplates.begin(), kTemplates.end(), [&](const Template& t) { return t.name == request.name; });
    if (found == kTemplates.end()) {
        std::string known;
        for (const std::string& name : cpu_template_names())
            known += (known.empty() ? "" : ", ") + name;
        return Error(
            ErrorCode::kInvalid, "there is no CPU template '" + request.name + "'; this VMM knows " + known);
    }
    const auto masks = masks_of(*found);
    Cpuid table;
    for (kvm_cpuid_entry2 e : *request.supported) {
        const LeafMask* mask = find_mask(masks, e);
        if (mask == nullptr) continue;
        e.eax &= mask->eax;
        e.ebx &= mask->ebx;
        e.ecx &= mask->ecx;
        e.edx &= mask->edx;
        table.push_back(e);
    }
    entry(table, 0).eax = std::min(entry(table, 0).eax, 0x16u);
    auto& leaf1 = entry(table, 1);
    leaf1.ecx |= kHypervisor | kX2apic;
    if (request.tsc_deadline)
        leaf1.ecx |= kTscDeadline;
    else
        leaf1.ecx &= ~kTscDeadline;
    add_topology(table, request.vcpus);
    entry(table, 0x40000000).eax = 0x40000010;
    entry(table, 0x40000010).eax = request.tsc_khz;
    return table;
}

Cpuid cpuid_for_vcpu(Cpuid table, unsigned index) {
    for (kvm_cpuid_entry2& e : table) {
        if (e.function == 1) e.ebx = (e.ebx & 0x00ffffff) | index << 24;
        if (e.function == 0xb) e.edx = index;
    }
    return table;
}

} // namespace liveupdate::vmm
