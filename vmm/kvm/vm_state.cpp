#include "vmm/kvm/vm_state.hpp"

#include <algorithm>

#include "handoff/base/deadline.hpp"
#include "vmm/kvm/undisturbed.hpp"

namespace liveupdate::vmm {
namespace {

constexpr int kIoapicPins = 24;

void save_pic(const kvm_pic_state& p, state::Pic& out) {
    out.set_last_irr(p.last_irr);
    out.set_irr(p.irr);
    out.set_imr(p.imr);
    out.set_isr(p.isr);
    out.set_priority_add(p.priority_add);
    out.set_irq_base(p.irq_base);
    out.set_read_reg_select(p.read_reg_select);
    out.set_poll(p.poll);
    out.set_special_mask(p.special_mask);
    out.set_init_state(p.init_state);
    out.set_auto_eoi(p.auto_eoi);
    out.set_rotate_on_auto_eoi(p.rotate_on_auto_eoi);
    out.set_special_fully_nested_mode(p.special_fully_nested_mode);
    out.set_init4(p.init4);
    out.set_elcr(p.elcr);
    out.set_elcr_mask(p.elcr_mask);
}

kvm_pic_state load_pic(const state::Pic& in) {
    kvm_pic_state p{};
    p.last_irr = static_cast<__u8>(in.last_irr());
    p.irr = static_cast<__u8>(in.irr());
    p.imr = static_cast<__u8>(in.imr());
    p.isr = static_cast<__u8>(in.isr());
    p.priority_add = static_cast<__u8>(in.priority_add());
    p.irq_base = static_cast<__u8>(in.irq_base());
    p.read_reg_select = static_cast<__u8>(in.read_reg_select());
    p.poll = static_cast<__u8>(in.poll());
    p.special_mask = static_cast<__u8>(in.special_mask());
    p.init_state = static_cast<__u8>(in.init_state());
    p.auto_eoi = static_cast<__u8>(in.auto_eoi());
    p.rotate_on_auto_eoi = static_cast<__u8>(in.rotate_on_auto_eoi());
    p.special_fully_nested_mode = static_cast<__u8>(in.special_fully_nested_mode());
    p.init4 = static_cast<__u8>(in.init4());
    p.elcr = static_cast<__u8>(in.elcr());
    p.elcr_mask = static_cast<__u8>(in.elcr_mask());
    return p;
}

Result<void> save_irqchips(const Vm& vm, state::Vm& out) {
    TRY_ASSIGN(const kvm_irqchip master, vm.irqchip(KVM_IRQCHIP_PIC_MASTER));
    TRY_ASSIGN(const kvm_irqchip slave, vm.irqchip(KVM_IRQCHIP_PIC_SLAVE));
    TRY_ASSIGN(const kvm_irqchip ioapic, vm.irqchip(KVM_IRQCHIP_IOAPIC));
    save_pic(master.chip.pic, *out.mutable_pic_master());
    save_pic(slave.chip.pic, *out.mutable_pic_slave());
    auto& io = *out.mutable_ioapic();
    io.set_base_address(ioapic.chip.ioapic.base_address);
    io.set_ioregsel(ioapic.chip.ioapic.ioregsel);
    io.set_id(ioapic.chip.ioapic.id);
    io.set_irr(ioapic.chip.ioapic.irr);
    io.clear_redirection();
    for (const auto& entry : ioapic.chip.ioapic.redirtbl)
        io.add_redirection(entry.bits);
    return {};
}

Result<void> load_irqchips(const Vm& vm, const state::Vm& in) {
    kvm_irqchip chip{};
    chip.chip_id = KVM_IRQCHIP_PIC_MASTER;
    chip.chip.pic = load_pic(in.pic_master());
    TRY(vm.set_irqchip(chip));
    chip = {};
    chip.chip_id = KVM_IRQCHIP_PIC_SLAVE;
    chip.chip.pic = load_pic(in.pic_slave());
    TRY(vm.set_irqchip(chip));
    chip = {};
    chip.chip_id = KVM_IRQCHIP_IOAPIC;
    auto& io = chip.chip.ioapic;
    io.base_address = in.ioapic().base_address();
    io.ioregsel = in.ioapic().ioregsel();
    io.id = in.ioapic().id();
    io.irr = in.ioapic().irr();
    for (int i = 0; i < kIoapicPins; ++i)
        io.redirtbl[i].bits = in.ioapic().redirection(i);
    return vm.set_irqchip(chip);
}

} // namespace

Result<void> save_vm(const Vm& vm, PitKeeper& pit, state::Vm& out) {
    TRY(pit.freeze(vm, *out.mutable_pit()));
    TRY(save_irqchips(vm, out));
    return undisturbed([&](uint64_t before) -> Result<void> {
        TRY_ASSIGN(const kvm_clock_data clock, vm.clock());
        // The earlier of two bounds: kvmclock must not come out behind what the guest has already seen.
        out.set_clock_at_ns(before);
        out.set_clock_ns(clock.clock);
        return {};
    });
}

Result<void> check_vm(const state::Vm& in) {
    if (!in.has_pic_master() || !in.has_pic_slave() || !in.has_ioapic() || !in.has_pit())
        return Error(
            ErrorCode::kRefused, "state section 'vm': an interrupt controller or the PIT is missing");
    if (in.ioapic().redirection_size() != kIoapicPins)
        return Error(ErrorCode::kRefused, "state section 'vm': the I/O APIC has not 24 pins");
    return PitKeeper::check(in.pit());
}

Result<void> load_vm(const Vm& vm, const state::Vm& in) {
    TRY(load_irqchips(vm, in));
    return undisturbed([&](uint64_t now) {
        kvm_clock_data clock{};
        clock.clock = in.clock_ns() + (now - in.clock_at_ns());
        return vm.set_clock(clock);
    });
}

} // namespace liveupdate::vmm
