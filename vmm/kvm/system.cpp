#include "vmm/kvm/system.hpp"

#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "handoff/base/fd.hpp"

namespace liveupdate::vmm {
namespace {

struct Essential {
    unsigned long capability;
    std::string_view name;
};
constexpr std::array kEssential = {
    Essential{KVM_CAP_USER_MEMORY, "user memory"},
    Essential{KVM_CAP_IRQCHIP, "an in-kernel interrupt controller"},
    Essential{KVM_CAP_PIT2, "an in-kernel PIT"},
    Essential{KVM_CAP_PIT_STATE2, "saving the PIT"},
    Essential{KVM_CAP_IMMEDIATE_EXIT, "immediate_exit"},
    Essential{KVM_CAP_XSAVE, "saving the FPU by XSAVE"},
    Essential{KVM_CAP_VCPU_EVENTS, "saving vCPU events"},
    Essential{KVM_CAP_ADJUST_CLOCK, "setting kvmclock"},
};

constexpr size_t kMaxCpuidEntries = 256;
constexpr size_t kMaxMsrs = 1024;

// MSRs that guests write and that KVM_GET_MSR_INDEX_LIST leaves out (MTRRs; Intel SDM vol. 4).
std::vector<uint32_t> memory_type_msrs() {
    std::vector<uint32_t> msrs = {0x2ff, 0x250, 0x258, 0x259};
    for (uint32_t m = 0x268; m <= 0x26f; ++m)
        msrs.push_back(m);
    for (uint32_t m = 0x200; m < 0x210; ++m)
        msrs.push_back(m);
    return msrs;
}

} // namespace

Result<int> kvm_ioctl(int fd, unsigned long request, void* argument, std::string_view name) {
    const int result = ::ioctl(fd, request, argument);
    if (result < 0) return Error::from_errno(name);
    return result;
}

Result<int> kvm_ioctl(int fd, unsigned long request, unsigned long argument, std::string_view name) {
    const int result = ::ioctl(fd, request, argument);
    if (result < 0) return Error::from_errno(name);
    return result;
}

Result<KvmSystem> KvmSystem::from(UniqueFd kvm) {
    KvmSystem system(std::move(kvm));
    TRY(system.ask());
    return system;
}

Result<KvmSystem> KvmSystem::duplicate() const {
    TRY_ASSIGN(UniqueFd file, fd::dup(fd_.get()));
    KvmSystem other(std::move(file));
    other.run_size_ = run_size_;
    other.xsave_size_ = xsave_size_;
    other.msrs_ = msrs_;
    return other;
}

int KvmSystem::extension(unsigned long capability) const {
    return std::max(0, ::ioctl(fd_.get(), KVM_CHECK_EXTENSION, capability));
}

Result<void> KvmSystem::ask() {
    TRY_ASSIGN(const int version, kvm_ioctl(fd_.get(), KVM_GET_API_VERSION, 0ul, "KVM_GET_API_VERSION"));
    if (version != KVM_API_VERSION)
        return Error(ErrorCode::kUnsupported,
            "this host's KVM speaks API version " + std::to_string(version) + ", not 12");
    for (const Essential& e : kEssential)
        if (extension(e.capability) == 0)
            return Error(ErrorCode::kUnsupported, "this host's KVM lacks " + std::string(e.name));
    TRY_ASSIGN(
        const int run_size, kvm_ioctl(fd_.get(), KVM_GET_VCPU_MMAP_SIZE, 0ul, "KVM_GET_VCPU_MMAP_SIZE"));
    run_size_ = static_cast<size_t>(run_size);
    const int xsave = extension(KVM_CAP_XSAVE2);
    xsave_size_ = std::max(kXsaveBytes, static_cast<size_t>(xsave));
    return ask_msrs();
}

Result<void> KvmSystem::ask_msrs() {
    std::vector<uint32_t> buffer(kMaxMsrs + 1);
    buffer[0] = kMaxMsrs;
    TRY(kvm_ioctl(fd_.get(), kGetMsrIndexList, buffer.data(), "KVM_GET_MSR_INDEX_LIST"));
    msrs_.assign(buffer.begin() + 1, buffer.begin() + 1 + buffer[0]);
    for (const uint32_t msr : memory_type_msrs())
        if (std::find(msrs_.begin(), msrs_.end(), msr) == msrs_.end()) msrs_.push_back(msr);
    return {};
}

Result<std::vector<kvm_cpuid_entry2>> KvmSystem::supported_cpuid() const {
    KvmTable<kvm_cpuid_entry2> table(kMaxCpuidEntries);
    TRY(kvm_ioctl(fd_.get(), kGetSupportedCpuid, table.data(), "KVM_GET_SUPPORTED_CPUID"));
    return std::vector<kvm_cpuid_entry2>(table.entries(), table.entries() + table.count());
}

} // namespace liveupdate::vmm
