#include "tests/guests/runtime/registers.hpp"

#include "tests/guests/runtime/cpu.hpp"
#include "tests/guests/runtime/status.hpp"

namespace tests::guests {

namespace {

constexpr std::uint64_t kXmm = 0x100;
constexpr std::uint64_t kFsBase = 0x101;
constexpr std::uint32_t kMsrFsBase = 0xc0000100;
/// SYSENTER_ESP, SYSENTER_EIP, LSTAR, CSTAR, SFMASK, KERNEL_GS_BASE: free for any value below
/// 2 GiB. TSC_AUX is not among them, since not every KVM lets a guest write it.
constexpr std::uint32_t kMsrs[] = {0x175, 0x176, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000102};

/// What FS points to.
alignas(64) std::uint64_t fs_words[kMaxVcpus][8];

std::uint64_t value_of(const VcpuSlot& slot, std::uint64_t which) {
    return 0x5a000000 + ((slot.index + 1) << 16) + (which & 0xfff);
}

void load_xmm(std::uint64_t value) {
    asm volatile("movq %0, %%xmm15" : : "r"(value));
}

std::uint64_t read_xmm() {
    std::uint64_t value;
    asm volatile("movq %%xmm15, %0" : "=r"(value));
    return value;
}

void load_fs_base(const VcpuSlot& slot) {
    write_msr(kMsrFsBase, reinterpret_cast<std::uint64_t>(&fs_words[slot.index]));
}

} // namespace

RegisterCheck::RegisterCheck(VcpuSlot& slot, std::uint64_t msr_period_ticks)
    : slot_(slot), period_(msr_period_ticks), enabled_((header().features & kFeatureRegisters) != 0) {
    if (!enabled_) return;
    load_xmm(value_of(slot_, kXmm));
    fs_words[slot_.index][0] = value_of(slot_, kFsBase);
    load_fs_base(slot_);
    for (const std::uint32_t msr : kMsrs)
        write_msr(msr, value_of(slot_, msr));
}

void RegisterCheck::check(std::uint64_t now_tsc) {
    if (!enabled_) return;
    if (const std::uint64_t found = read_xmm(); found != value_of(slot_, kXmm)) {
        report_error(ErrorCode::kRegisterLost, kXmm, found);
        load_xmm(value_of(slot_, kXmm));
    }
    std::uint64_t word;
    asm volatile("movq %%fs:0, %0" : "=r"(word));
    if (word != value_of(slot_, kFsBase)) {
        report_error(ErrorCode::kRegisterLost, kFsBase, word);
        load_fs_base(slot_);
    }
    if (now_tsc >= next_) {
        next_ = now_tsc + period_;
        check_msrs();
    }
    add(slot_.clock.register_checks, 1);
}

void RegisterCheck::check_msrs() {
    for (const std::uint32_t msr : kMsrs) {
        const std::uint64_t found = read_msr(msr);
        if (found == value_of(slot_, msr)) continue;
        report_error(ErrorCode::kRegisterLost, msr, found);
        write_msr(msr, value_of(slot_, msr));
    }
}

} // namespace tests::guests
