// A vCPU's state between KVM's structures and the saved message.
//
// Order of loading (each "before" is a trap that KVM does not report): CPUID before everything; SREGS before
// the local APIC (APIC base); the TSC before its deadline; the local APIC before MSR 0x6E0 (else the
// timer is dead and every call succeeds); REGS before VCPU_EVENTS (setting registers drops a pending
// exception).
#include <sys/ioctl.h>
#include <x86intrin.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "handoff/base/deadline.hpp"
#include "vmm/kvm/undisturbed.hpp"
#include "vmm/kvm/vcpu.hpp"

namespace liveupdate::vmm {
namespace {

constexpr uint32_t kMsrTsc = 0x10;
constexpr uint32_t kMsrTscDeadline = 0x6e0;
constexpr size_t kSegments = 8, kControls = 7, kGeneral = 18, kDebug = 6;
constexpr size_t kMaxXcrs = KVM_MAX_XCRS;

std::array<__u64 kvm_regs::*, kGeneral> general_registers() {
    return {&kvm_regs::rax, &kvm_regs::rbx, &kvm_regs::rcx, &kvm_regs::rdx, &kvm_regs::rsi, &kvm_regs::rdi,
        &kvm_regs::rsp, &kvm_regs::rbp, &kvm_regs::r8, &kvm_regs::r9, &kvm_regs::r10, &kvm_regs::r11,
        &kvm_regs::r12, &kvm_regs::r13, &kvm_regs::r14, &kvm_regs::r15, &kvm_regs::rip, &kvm_regs::rflags};
}
std::array<kvm_segment kvm_sregs::*, kSegments> segment_registers() {
    return {&kvm_sregs::cs, &kvm_sregs::ds, &kvm_sregs::es, &kvm_sregs::fs, &kvm_sregs::gs, &kvm_sregs::ss,
        &kvm_sregs::tr, &kvm_sregs::ldt};
}
std::array<__u64 kvm_sregs::*, kControls> control_registers() {
    return {&kvm_sregs::cr0, &kvm_sregs::cr2, &kvm_sregs::cr3, &kvm_sregs::cr4, &kvm_sregs::cr8,
        &kvm_sregs::efer, &kvm_sregs::apic_base};
}

void save_segment(const kvm_segment& s, state::Segment& out) {
    out.set_base(s.base);
    out.set_limit(s.limit);
    out.set_selector(s.selector);
    out.set_type(s.type);
    out.set_present(s.present);
    out.set_dpl(s.dpl);
    out.set_db(s.db);
    out.set_s(s.s);
    out.set_l(s.l);
    out.set_g(s.g);
    out.set_avl(s.avl);
    out.set_unusable(s.unusable);
}

kvm_segment load_segment(const state::Segment& in) {
    kvm_segment s{};
    s.base = in.base();
    s.limit = in.limit();
    s.selector = static_cast<__u16>(in.selector());
    s.type = static_cast<__u8>(in.type());
    s.present = static_cast<__u8>(in.present());
    s.dpl = static_cast<__u8>(in.dpl());
    s.db = static_cast<__u8>(in.db());
    s.s = static_cast<__u8>(in.s());
    s.l = static_cast<__u8>(in.l());
    s.g = static_cast<__u8>(in.g());
    s.avl = static_cast<__u8>(in.avl());
    s.unusable = static_cast<__u8>(in.unusable());
    return s;
}

void write_registers(const kvm_regs& regs, const kvm_sregs& sregs, state::Vcpu& out) {
    out.clear_general();
    out.clear_segments();
    out.clear_control();
    for (const auto r : general_registers())
        out.add_general(regs.*r);
    for (const auto s : segment_registers())
        save_segment(sregs.*s, *out.add_segments());
    for (const auto c : control_registers())
        out.add_control(sregs.*c);
    out.mutable_gdt()->set_base(sregs.gdt.base);
    out.mutable_gdt()->set_limit(sregs.gdt.limit);
    out.mutable_idt()->set_base(sregs.idt.base);
    out.mutable_idt()->set_limit(sregs.idt.limit);
}

kvm_regs load_general(const state::Vcpu& in) {
    kvm_regs regs{};
    int i = 0;
    for (const auto r : general_registers())
        regs.*r = in.general(i++);
    return regs;
}

// Without the interrupt bitmap: what KVM is about to inject is in the events, and a bit that is set here
// would be queued for good, even if the vCPU is only primed with it.
kvm_sregs load_special(const state::Vcpu& in) {
    kvm_sregs sregs{};
    int i = 0;
    for (const auto s : segment_registers())
        sregs.*s = load_segment(in.segments(i++));
    i = 0;
    for (const auto c : control_registers())
        sregs.*c = in.control(i++);
    sregs.gdt.base = in.gdt().base();
    sregs.gdt.limit = static_cast<__u16>(in.gdt().limit());
    sregs.idt.base = in.idt().base();
    sregs.idt.limit = static_cast<__u16>(in.idt().limit());
    return sregs;
}

kvm_xcrs load_xcrs(const state::Vcpu& in) {
    kvm_xcrs xcrs{};
    xcrs.nr_xcrs = 1;
    xcrs.xcrs[0].value = in.xcr(0);
    return xcrs;
}

kvm_debugregs load_debug(const state::Vcpu& in) {
    kvm_debugregs debug{};
    for (int i = 0; i < 4; ++i)
        debug.db[i] = in.debug(i);
    debug.dr6 = in.debug(4);
    debug.dr7 = in.debug(5);
    return debug;
}

void save_events(const kvm_vcpu_events& e, state::Events& out) {
    out.set_exception_injected(e.exception.injected);
    out.set_exception_nr(e.exception.nr);
    out.set_exception_has_error_code(e.exception.has_error_code);
    out.set_exception_pending(e.exception.pending);
    out.set_exception_error_code(e.exception.error_code);
    out.set_interrupt_injected(e.interrupt.injected);
    out.set_interrupt_nr(e.interrupt.nr);
    out.set_interrupt_soft(e.interrupt.soft);
    out.set_interrupt_shadow(e.interrupt.shadow);
    out.set_nmi_injected(e.nmi.injected);
    out.set_nmi_pending(e.nmi.pending);
    out.set_nmi_masked(e.nmi.masked);
    out.set_sipi_vector(e.sipi_vector);
    out.set_flags(e.flags);
    out.set_smi_smm(e.smi.smm);
    out.set_smi_pending(e.smi.pending);
    out.set_smi_inside_nmi(e.smi.smm_inside_nmi);
    out.set_smi_latched_init(e.smi.latched_init);
    out.set_exception_has_payload(e.exception_has_payload);
    out.set_exception_payload(e.exception_payload);
}

kvm_vcpu_events load_events(const state::Events& in) {
    kvm_vcpu_events e{};
    e.exception.injected = static_cast<__u8>(in.exception_injected());
    e.exception.nr = static_cast<__u8>(in.exception_nr());
    e.exception.has_error_code = static_cast<__u8>(in.exception_has_error_code());
    e.exception.pending = static_cast<__u8>(in.exception_pending());
    e.exception.error_code = in.exception_error_code();
    e.interrupt.injected = static_cast<__u8>(in.interrupt_injected());
    e.interrupt.nr = static_cast<__u8>(in.interrupt_nr());
    e.interrupt.soft = static_cast<__u8>(in.interrupt_soft());
    e.interrupt.shadow = static_cast<__u8>(in.interrupt_shadow());
    e.nmi.injected = static_cast<__u8>(in.nmi_injected());
    e.nmi.pending = static_cast<__u8>(in.nmi_pending());
    e.nmi.masked = static_cast<__u8>(in.nmi_masked());
    e.sipi_vector = in.sipi_vector();
    // What KVM reports as valid on reading is not what it wants set: NMI pending and SIPI must be named.
    e.flags =
        (in.flags() & (KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM | KVM_VCPUEVENT_VALID_PAYLOAD)) |
        KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR;
    e.smi.smm = static_cast<__u8>(in.smi_smm());
    e.smi.pending = static_cast<__u8>(in.smi_pending());
    e.smi.smm_inside_nmi = static_cast<__u8>(in.smi_inside_nmi());
    e.smi.latched_init = static_cast<__u8>(in.smi_latched_init());
    e.exception_has_payload = static_cast<__u8>(in.exception_has_payload());
    e.exception_payload = in.exception_payload();
    return e;
}

// What a vCPU that has never run holds.
bool nothing_pending(const state::Events& in) {
    const kvm_vcpu_events e = load_events(in);
    return (e.exception.injected | e.exception.pending | e.interrupt.injected | e.interrupt.shadow |
               e.nmi.injected | e.nmi.pending | e.nmi.masked | e.smi.smm | e.smi.pending |
               e.smi.smm_inside_nmi | e.smi.latched_init | e.exception_has_payload) == 0 &&
           e.sipi_vector == 0;
}

// Offsets in the register page (SDM vol. 3, table 11-1).
uint32_t apic_register(const kvm_lapic_state& apic, size_t offset) {
    uint32_t value = 0;
    std::memcpy(&value, apic.regs + offset, sizeof(value));
    return value;
}
void set_apic_register(kvm_lapic_state& apic, size_t offset, uint32_t value) {
    std::memcpy(apic.regs + offset, &value, sizeof(value));
}

constexpr size_t kApicLvtTimer = 0x320, kApicInitialCount = 0x380, kApicCurrentCount = 0x390,
                 kApicDivide = 0x3e0;
constexpr uint32_t kTimerModeMask = 3u << 17, kTimerTscDeadline = 2u << 17;

// The APIC timer went on counting while nobody ran the guest. KVM starts the timer from the current count
// as it is loaded, one bus cycle a nanosecond; without this every update would make the guest's timer late.
void advance_apic_timer(kvm_lapic_state& apic, uint64_t elapsed_ns) {
    const uint32_t mode = apic_register(apic, kApicLvtTimer) & kTimerModeMask;
    const uint64_t initial = apic_register(apic, kApicInitialCount);
    uint64_t current = apic_register(apic, kApicCurrentCount);
    if (mode == kTimerTscDeadline || initial == 0 || current == 0) return;
    const uint32_t code = apic_register(apic, kApicDivide);
    const uint32_t shift = (((code & 3) | (code >> 1 & 4)) + 1) & 7;
    const uint64_t passed = elapsed_ns >> shift;
    // Due while nobody ran: as soon as possible. A periodic timer goes on from there, as it does on a CPU
    // whose interrupts were off for longer than a period.
    current = passed < current ? current - passed : 1;
    set_apic_register(apic, kApicCurrentCount, static_cast<uint32_t>(current));
}

Error wrong(std::string words) {
    return {ErrorCode::kRefused, "state section 'vcpu': " + std::move(words)};
}
Error wrong_interrupts(std::string words) {
    return {ErrorCode::kRefused, "state section 'vcpu-interrupts': " + std::move(words)};
}

bool fits(uint64_t value, uint64_t most) {
    return value <= most;
}

// Setting one of these lets KVM write to guest memory, now or when the vCPU is next scheduled: kvmclock and
// wall clock, steal time, asynchronous page faults, end of interrupt (Linux's
// Documentation/virt/kvm/x86/msr.rst).
bool touches_guest_memory(uint32_t msr) {
    return msr == 0x11 || msr == 0x12 || (msr >= 0x4b564d00 && msr <= 0x4b564dff);
}

} // namespace

Result<void> Vcpu::check(const state::Vcpu& in) const {
    if (in.general_size() != kGeneral || in.segments_size() != kSegments || in.control_size() != kControls ||
        in.debug_size() != kDebug)
        return wrong("registers are missing or left over");
    if (static_cast<size_t>(in.xcr_size()) > kMaxXcrs) return wrong("there are too many XCRs");
    if (in.xsave().size() < kXsaveBytes || in.xsave().size() > xsave_size_)
        return wrong("the XSAVE area has " + std::to_string(in.xsave().size()) + " bytes; this host has " +
                     std::to_string(xsave_size_));
    if (in.msr_index_size() != in.msr_value_size()) return wrong("MSR numbers and values do not pair up");
    if (static_cast<size_t>(in.msr_index_size()) > msrs_.size()) return wrong("there are MSRs left over");
    for (const uint32_t msr : in.msr_index())
        if (!known_msrs_.contains(msr))
            return wrong("MSR " + std::to_string(msr) + " cannot be set on this host");
    for (const state::Segment& s : in.segments())
        if (!fits(s.selector(), 0xffff) || !fits(s.type(), 15) || !fits(s.dpl(), 3))
            return wrong("a segment is out of range");
    return {};
}

Result<void> Vcpu::check(const state::VcpuInterrupts& in) const {
    if (in.lapic().size() != KVM_APIC_REG_SIZE)
        return wrong_interrupts("the local APIC has " + std::to_string(in.lapic().size()) + " bytes");
    if (!fits(in.mp_state(), KVM_MP_STATE_SIPI_RECEIVED)) return wrong_interrupts("the MP state is unknown");
    if (!in.has_events()) return wrong_interrupts("the pending events are missing");
    return in.has_registers() ? check(in.registers()) : Result<void>();
}

Result<void> Vcpu::get_msrs(state::Vcpu& out) {
    auto* entries = msr_table_.entries();
    msr_table_.set_count(msrs_.size());
    for (size_t i = 0; i < msrs_.size(); ++i)
        entries[i] = {msrs_[i], 0, 0};
    TRY_ASSIGN(const int n, kvm_ioctl(fd_.get(), kGetMsrs, msr_table_.data(), "KVM_GET_MSRS"));
    if (static_cast<size_t>(n) != msrs_.size())
        return Error(ErrorCode::kSystem,
            "KVM_GET_MSRS stopped at MSR " + std::to_string(msrs_[static_cast<size_t>(n)]));
    out.clear_msr_index();
    out.clear_msr_value();
    for (size_t i = 0; i < msrs_.size(); ++i) {
        out.add_msr_index(msrs_[i]);
        out.add_msr_value(entries[i].data);
    }
    return {};
}

// In the order of the message, without those that hold their value already.
Result<void> Vcpu::set_msrs(const state::Vcpu& in, Msrs which) {
    auto* entries = msr_table_.entries();
    size_t count = 0;
    for (int i = 0; i < in.msr_index_size(); ++i) {
        const uint32_t msr = in.msr_index(i);
        const bool guest_memory = touches_guest_memory(msr);
        if (which == Msrs::kHarmless && guest_memory) continue;
        if (!guest_memory && known_msrs_.at(msr) == in.msr_value(i)) continue;
        entries[count++] = {msr, 0, in.msr_value(i)};
    }
    if (count == 0) return {};
    msr_table_.set_count(count);
    TRY_ASSIGN(const int n, kvm_ioctl(fd_.get(), kSetMsrs, msr_table_.data(), "KVM_SET_MSRS"));
    if (static_cast<size_t>(n) != count)
        return Error(ErrorCode::kRefused, "this KVM refuses the saved value of MSR " +
                                              std::to_string(entries[static_cast<size_t>(n)].index));
    for (size_t i = 0; i < count; ++i)
        known_msrs_[entries[i].index] = entries[i].data;
    return {};
}

Result<void> Vcpu::save_tsc(state::Vcpu& out) {
    refresh_tsc_offset();
    if (const auto offset = tsc_offset()) {
        out.set_tsc_offset(*offset);
        return {};
    }
    return undisturbed([&](uint64_t) -> Result<void> {
        OneMsr one(kMsrTsc);
        TRY(call(kGetMsrs, &one, "KVM_GET_MSRS of the TSC"));
        out.set_without_tsc_offset(1);
        out.set_tsc(one.entry.data);
        out.set_tsc_host(__rdtsc());
        return {};
    });
}

Result<void> Vcpu::load_tsc(const state::Vcpu& in) {
    if (in.without_tsc_offset() == 0) {
        // Set beforehand in the common case: it changes only when the guest writes its TSC.
        if (tsc_offset() == in.tsc_offset()) return {};
        return set_tsc_offset(in.tsc_offset());
    }
    // Not undisturbed(): KVM takes a second write within a second for an attempt to synchronize vCPUs, and
    // keeps the first.
    return set_msr(kMsrTsc, in.tsc() + (__rdtsc() - in.tsc_host()));
}

Result<void> Vcpu::save_registers(state::Vcpu& out) {
    // First: reading it lets KVM act on an INIT or SIPI that has arrived, which changes the registers.
    kvm_mp_state mp{};
    TRY(call(KVM_GET_MP_STATE, &mp, "KVM_GET_MP_STATE"));
    saved_mp_state_ = mp.mp_state;
    kvm_regs regs{};
    kvm_sregs sregs{};
    TRY(call(KVM_GET_REGS, &regs, "KVM_GET_REGS"));
    TRY(call(KVM_GET_SREGS, &sregs, "KVM_GET_SREGS"));
    write_registers(regs, sregs, out);
    out.clear_xcr();
    if (has_xcrs_) {
        kvm_xcrs xcrs{};
        TRY(call(KVM_GET_XCRS, &xcrs, "KVM_GET_XCRS"));
        for (uint32_t i = 0; i < xcrs.nr_xcrs && i < kMaxXcrs; ++i)
            if (xcrs.xcrs[i].xcr == 0) out.add_xcr(xcrs.xcrs[i].value);
    }
    TRY(call(has_xsave2_ ? kGetXsave2 : kGetXsave, xsave_buffer_.data(), "KVM_GET_XSAVE"));
    out.set_xsave(xsave_buffer_.data(), xsave_size_);
    kvm_debugregs debug{};
    TRY(call(KVM_GET_DEBUGREGS, &debug, "KVM_GET_DEBUGREGS"));
    out.clear_debug();
    for (const __u64 db : debug.db)
        out.add_debug(db);
    out.add_debug(debug.dr6);
    out.add_debug(debug.dr7);
    TRY(get_msrs(out));
    return save_tsc(out);
}

Result<void> Vcpu::save_interrupts(state::VcpuInterrupts& out) {
    kvm_mp_state mp{};
    TRY(call(KVM_GET_MP_STATE, &mp, "KVM_GET_MP_STATE"));
    if (mp.mp_state != saved_mp_state_) TRY(save_registers(*out.mutable_registers()));
    out.set_mp_state(mp.mp_state);
    kvm_lapic_state apic{};
    TRY(call(KVM_GET_LAPIC, &apic, "KVM_GET_LAPIC"));
    out.set_saved_at_ns(monotonic_ns());
    out.set_lapic(apic.regs, sizeof(apic.regs));
    if ((apic_register(apic, kApicLvtTimer) & kTimerModeMask) == kTimerTscDeadline) {
        OneMsr one(kMsrTscDeadline);
        TRY(call(kGetMsrs, &one, "KVM_GET_MSRS of TSC_DEADLINE"));
        out.set_tsc_deadline(one.entry.data);
    }
    kvm_vcpu_events events{};
    TRY(call(KVM_GET_VCPU_EVENTS, &events, "KVM_GET_VCPU_EVENTS"));
    save_events(events, *out.mutable_events());
    return {};
}

template <typename T>
Result<void> Vcpu::set_changed(
    std::optional<T>& known, const T& value, unsigned long request, const char* name) {
    if (known && std::memcmp(&*known, &value, sizeof(T)) == 0) return {};
    T copy = value;
    TRY(call(request, &copy, name));
    known = value;
    return {};
}

Result<void> Vcpu::set_xsave(const std::string& area) {
    if (area == known_xsave_) return {};
    std::memcpy(xsave_buffer_.data(), area.data(), area.size());
    TRY(call(kSetXsave, xsave_buffer_.data(), "KVM_SET_XSAVE"));
    known_xsave_ = area;
    return {};
}

Result<void> Vcpu::prime(const state::Vcpu& in) {
    TRY(set_changed(known_sregs_, load_special(in), KVM_SET_SREGS, "KVM_SET_SREGS"));
    if (has_xcrs_ && in.xcr_size() > 0)
        TRY(set_changed(known_xcrs_, load_xcrs(in), KVM_SET_XCRS, "KVM_SET_XCRS"));
    TRY(set_xsave(in.xsave()));
    TRY(set_changed(known_debug_, load_debug(in), KVM_SET_DEBUGREGS, "KVM_SET_DEBUGREGS"));
    return set_msrs(in, Msrs::kHarmless);
}

Result<void> Vcpu::load_registers(const state::Vcpu& in) {
    TRY(set_changed(known_sregs_, load_special(in), KVM_SET_SREGS, "KVM_SET_SREGS"));
    if (has_xcrs_ && in.xcr_size() > 0)
        TRY(set_changed(known_xcrs_, load_xcrs(in), KVM_SET_XCRS, "KVM_SET_XCRS"));
    TRY(set_xsave(in.xsave()));
    kvm_regs regs = load_general(in);
    TRY(call(KVM_SET_REGS, &regs, "KVM_SET_REGS"));
    TRY(set_changed(known_debug_, load_debug(in), KVM_SET_DEBUGREGS, "KVM_SET_DEBUGREGS"));
    TRY(load_tsc(in));
    return set_msrs(in, Msrs::kAll);
}

Result<void> Vcpu::load_interrupts(const state::VcpuInterrupts& in) {
    if (in.has_registers()) TRY(load_registers(in.registers()));
    kvm_lapic_state apic{};
    std::memcpy(apic.regs, in.lapic().data(), sizeof(apic.regs));
    const uint64_t now = monotonic_ns();
    advance_apic_timer(apic, now > in.saved_at_ns() ? now - in.saved_at_ns() : 0);
    TRY(call(KVM_SET_LAPIC, &apic, "KVM_SET_LAPIC"));
    if (in.tsc_deadline() != 0) TRY(set_msr(kMsrTscDeadline, in.tsc_deadline()));
    if (!nothing_pending(in.events())) {
        kvm_vcpu_events events = load_events(in.events());
        TRY(call(KVM_SET_VCPU_EVENTS, &events, "KVM_SET_VCPU_EVENTS"));
    }
    kvm_mp_state mp{};
    mp.mp_state = in.mp_state();
    return set_changed(known_mp_state_, mp, KVM_SET_MP_STATE, "KVM_SET_MP_STATE");
}

void Vcpu::note_pause(const state::Vcpu& in) {
    constexpr uint32_t kSystemTime = 0x12, kSystemTimeNew = 0x4b564d01;
    for (int i = 0; i < in.msr_index_size(); ++i) {
        const uint32_t msr = in.msr_index(i);
        if ((msr != kSystemTime && msr != kSystemTimeNew) || (in.msr_value(i) & 1) == 0) continue;
        ::ioctl(fd_.get(), KVM_KVMCLOCK_CTRL, 0); // EINVAL: the guest has no clock page after all
        return;
    }
}

} // namespace liveupdate::vmm
