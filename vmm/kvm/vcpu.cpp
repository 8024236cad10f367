#include "vmm/kvm/vcpu.hpp"

#include <pthread.h>
#include <signal.h>

#include <sys/ioctl.h>

#include <algorithm>
#include <cstring>

namespace liveupdate::vmm {
namespace {

constexpr uint32_t kMsrTsc = 0x10;
constexpr uint32_t kMsrTscAdjust = 0x3b;
constexpr uint32_t kMsrTscDeadline = 0x6e0;
constexpr size_t kMostMsrsAtOnce = 255; // fewer than MAX_IO_MSRS of KVM

// Not part of what crosses: the TSC goes by its offset, the deadline by its own field.
bool handled_elsewhere(uint32_t msr) {
    return msr == kMsrTsc || msr == kMsrTscDeadline;
}

kvm_segment segment_from(const SegmentState& s) {
    kvm_segment segment{};
    segment.base = s.base;
    segment.limit = s.limit;
    segment.selector = s.selector;
    segment.type = s.type;
    segment.s = s.code_or_data ? 1 : 0;
    segment.present = s.present ? 1 : 0;
    segment.db = s.default_32 ? 1 : 0;
    segment.l = s.long_mode ? 1 : 0;
    segment.g = s.page_granular ? 1 : 0;
    return segment;
}

} // namespace

Result<std::unique_ptr<Vcpu>> Vcpu::create(const KvmSystem& system, Vm& vm, unsigned index) {
    std::unique_ptr<Vcpu> vcpu(new Vcpu);
    vcpu->index_ = index;
    TRY_ASSIGN(vcpu->fd_, vm.create_vcpu(index));
    TRY_ASSIGN(vcpu->run_mapping_, handoff::SharedMapping::map(vcpu->fd_.get(), 0, system.run_mapping_size(),
                                       handoff::MapMode::kShared));
    vcpu->has_xcrs_ = system.extension(KVM_CAP_XCRS) > 0;
    vcpu->has_xsave2_ = system.extension(KVM_CAP_XSAVE2) > 0;
    vcpu->xsave_size_ = system.xsave_size();
    vcpu->xsave_buffer_.resize((vcpu->xsave_size_ + 7) / 8);
    kvm_device_attr attribute{};
    attribute.group = KVM_VCPU_TSC_CTRL;
    attribute.attr = KVM_VCPU_TSC_OFFSET;
    vcpu->has_tsc_offset_ = ::ioctl(vcpu->fd_.get(), KVM_HAS_DEVICE_ATTR, &attribute) == 0;
    return vcpu;
}

Result<void> Vcpu::set_cpuid(const KvmSystem& system, const Cpuid& vcpu0) {
    const Cpuid cpuid = cpuid_for_vcpu(vcpu0, index_);
    for (const kvm_cpuid_entry2& e : cpuid)
        if (e.function == 1) signature_ = e.eax;
    KvmTable<kvm_cpuid_entry2> table(cpuid.size());
    std::copy(cpuid.begin(), cpuid.end(), table.entries());
    TRY(call(kSetCpuid2, table.data(), "KVM_SET_CPUID2"));
    refresh_tsc_offset();
    return probe_msrs(system);
}

// KVM goes through a table up to the first MSR that it refuses. A call for each would cost far more: each
// loads the vCPU.
Result<std::vector<kvm_msr_entry>> those_that_work(
    int vcpu, const std::vector<kvm_msr_entry>& entries, unsigned long request, const char* name) {
    std::vector<kvm_msr_entry> good;
    for (size_t at = 0; at < entries.size();) {
        const size_t count = std::min(entries.size() - at, kMostMsrsAtOnce);
        KvmTable<kvm_msr_entry> table(count);
        std::copy_n(entries.data() + at, count, table.entries());
        TRY_ASSIGN(const int done, kvm_ioctl(vcpu, request, table.data(), name));
        good.insert(good.end(), table.entries(), table.entries() + done);
        const bool refused = static_cast<size_t>(done) < count;
        at += static_cast<size_t>(done) + (refused ? 1 : 0);
    }
    return good;
}

// Each is set to the value that it has just had: a KVM that lists an MSR may still refuse one of the two.
Result<void> Vcpu::probe_msrs(const KvmSystem& system) {
    std::vector<kvm_msr_entry> listed;
    for (const uint32_t msr : system.msr_indices())
        if (!handled_elsewhere(msr)) listed.push_back({msr, 0, 0});
    TRY_ASSIGN(const auto readable, those_that_work(fd_.get(), listed, kGetMsrs, "KVM_GET_MSRS"));
    TRY_ASSIGN(const auto settable, those_that_work(fd_.get(), readable, kSetMsrs, "KVM_SET_MSRS"));
    for (const kvm_msr_entry& entry : settable) {
        msrs_.push_back(entry.index);
        known_msrs_[entry.index] = entry.data;
    }
    // TSC_ADJUST moves the TSC when a guest writes it, not when a host does: it is restored as a value.
    std::stable_partition(msrs_.begin(), msrs_.end(), [](uint32_t m) { return m == kMsrTscAdjust; });
    msr_table_ = KvmTable<kvm_msr_entry>(msrs_.size());
    return {};
}

Result<void> Vcpu::set_initial_state(const InitialState& s) {
    kvm_sregs sregs{};
    TRY(call(KVM_GET_SREGS, &sregs, "KVM_GET_SREGS"));
    sregs.cs = segment_from(s.cs);
    for (kvm_segment* data : {&sregs.ds, &sregs.es, &sregs.fs, &sregs.gs, &sregs.ss})
        *data = segment_from(s.data);
    sregs.tr = segment_from(s.tr);
    sregs.ldt = segment_from(s.ldt);
    sregs.gdt = {s.gdt.base, s.gdt.limit, {}};
    sregs.idt = {s.idt.base, s.idt.limit, {}};
    sregs.cr0 = s.cr0;
    sregs.cr3 = s.cr3;
    sregs.cr4 = s.cr4;
    sregs.efer = s.efer;
    TRY(call(KVM_SET_SREGS, &sregs, "KVM_SET_SREGS"));
    kvm_regs regs{};
    regs.rip = s.rip;
    regs.rbx = s.rbx;
    regs.rsi = s.rsi;
    regs.rdx = signature_;
    regs.rflags = s.rflags;
    return call(KVM_SET_REGS, &regs, "KVM_SET_REGS");
}

Result<bool> Vcpu::enter() {
    if (::ioctl(fd_.get(), KVM_RUN, 0) == 0) return true;
    // EAGAIN: a vCPU that waited for its INIT or SIPI was woken.
    if (errno == EINTR || errno == EAGAIN) return false;
    return Error::from_errno("KVM_RUN of vCPU " + std::to_string(index_));
}

std::optional<uint64_t> Vcpu::instruction_pointer() const {
    kvm_regs registers{};
    if (::ioctl(fd_.get(), KVM_GET_REGS, &registers) != 0) return std::nullopt;
    return registers.rip;
}

// Linux's Documentation/virt/kvm/api.rst, KVM_SET_SIGNAL_MASK: a signal that only KVM_RUN's mask lets through
// ends it. KVM looks for one after it has loaded its MMU and before it enters the guest.
Result<void> Vcpu::warm_up(int signal) {
    // One that waits for its INIT would only be put to sleep.
    kvm_mp_state runnable{};
    TRY(call(KVM_SET_MP_STATE, &runnable, "KVM_SET_MP_STATE"));
    known_mp_state_ = runnable;
    struct {
        uint32_t length = 8; // bytes of the kernel's sigset
        uint8_t unblocked[8] = {};
    } mask;
    TRY(call(kSetSignalMask, &mask, "KVM_SET_SIGNAL_MASK"));
    sigset_t blocked, before;
    ::sigemptyset(&blocked);
    ::sigaddset(&blocked, signal);
    ::pthread_sigmask(SIG_BLOCK, &blocked, &before);
    ::pthread_kill(::pthread_self(), signal);
    const auto entered = enter();
    const timespec at_once{};
    while (::sigtimedwait(&blocked, nullptr, &at_once) < 0 && errno == EINTR)
        ;
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    TRY(call(kSetSignalMask, static_cast<void*>(nullptr), "KVM_SET_SIGNAL_MASK"));
    TRY(entered);
    if (*entered)
        return Error(ErrorCode::kInternal,
            "vCPU " + std::to_string(index_) + " left KVM_RUN with an exit though a signal was pending");
    return {};
}

Result<void> Vcpu::pre_fault(uint64_t gpa, uint64_t size) const {
    // KVM moves gpa and size on as far as it got.
    KvmPreFaultMemory range{gpa, size, 0, {}};
    while (range.size > 0) {
        if (::ioctl(fd_.get(), kPreFaultMemory, &range) == 0) continue;
        if (errno == EINTR || errno == EAGAIN) continue;
        if (errno == ENOENT || errno == EOPNOTSUPP)
            return {}; // shadow paging: there is no such table to fill
        return Error::from_errno("KVM_PRE_FAULT_MEMORY");
    }
    return {};
}

std::optional<int64_t> Vcpu::tsc_offset() const {
    if (!has_tsc_offset_) return std::nullopt;
    return tsc_offset_.load(std::memory_order_relaxed);
}

void Vcpu::refresh_tsc_offset() {
    uint64_t offset = 0;
    kvm_device_attr attribute{};
    attribute.group = KVM_VCPU_TSC_CTRL;
    attribute.attr = KVM_VCPU_TSC_OFFSET;
    attribute.addr = reinterpret_cast<uint64_t>(&offset);
    if (!has_tsc_offset_) return;
    if (::ioctl(fd_.get(), KVM_GET_DEVICE_ATTR, &attribute) < 0)
        has_tsc_offset_ = false;
    else
        tsc_offset_.store(static_cast<int64_t>(offset), std::memory_order_relaxed);
}

Result<void> Vcpu::set_tsc_offset(int64_t offset) {
    auto value = static_cast<uint64_t>(offset);
    kvm_device_attr attribute{};
    attribute.group = KVM_VCPU_TSC_CTRL;
    attribute.attr = KVM_VCPU_TSC_OFFSET;
    attribute.addr = reinterpret_cast<uint64_t>(&value);
    TRY(call(KVM_SET_DEVICE_ATTR, &attribute, "set the TSC offset"));
    tsc_offset_.store(offset, std::memory_order_relaxed);
    return {};
}

Result<uint32_t> Vcpu::tsc_khz() const {
    TRY_ASSIGN(const int khz, kvm_ioctl(fd_.get(), KVM_GET_TSC_KHZ, 0ul, "KVM_GET_TSC_KHZ"));
    return static_cast<uint32_t>(khz);
}

Result<void> Vcpu::set_msr(uint32_t index, uint64_t value) {
    OneMsr one(index, value);
    if (::ioctl(fd_.get(), kSetMsrs, &one) != 1)
        return Error(ErrorCode::kUnsupported,
            "vCPU " + std::to_string(index_) + ": this KVM refuses MSR " + std::to_string(index));
    return {};
}

} // namespace liveupdate::vmm
