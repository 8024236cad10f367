#include "vmm/kvm/vm.hpp"

#include <algorithm>
#include <cerrno>
#include <vector>

namespace liveupdate::vmm {
namespace {

// Three pages that Intel VT-x without unrestricted guest needs, below the firmware window.
constexpr uint64_t kTssAddress = 0xfeffd000;
constexpr uint64_t kIdentityMapAddress = 0xfeffc000;
constexpr uint32_t kIoapicPins = 24;

kvm_irq_routing_entry route(uint32_t gsi, uint32_t chip, uint32_t pin) {
    kvm_irq_routing_entry entry{};
    entry.gsi = gsi;
    entry.type = KVM_IRQ_ROUTING_IRQCHIP;
    entry.u.irqchip.irqchip = chip;
    entry.u.irqchip.pin = pin;
    return entry;
}

// A VM is an MMU notifier of the process, which the kernel does not install while it has a signal to deliver,
// be it one that the process never sees (mm_take_all_locks).
Result<int> create_vm(const KvmSystem& system) {
    for (;;) {
        auto made = kvm_ioctl(system.fd(), KVM_CREATE_VM, 0ul, "KVM_CREATE_VM");
        if (made || made.error().system_errno != EINTR) return made;
    }
}

} // namespace

Result<Vm> Vm::create(const KvmSystem& system) {
    TRY_ASSIGN(const int raw, create_vm(system));
    Vm vm{UniqueFd(raw)};
    uint64_t identity = kIdentityMapAddress;
    if (system.extension(KVM_CAP_SET_IDENTITY_MAP_ADDR) > 0)
        TRY(kvm_ioctl(raw, KVM_SET_IDENTITY_MAP_ADDR, &identity, "KVM_SET_IDENTITY_MAP_ADDR"));
    if (system.extension(KVM_CAP_SET_TSS_ADDR) > 0)
        TRY(kvm_ioctl(raw, KVM_SET_TSS_ADDR, kTssAddress, "KVM_SET_TSS_ADDR"));
    return vm;
}

Result<void> Vm::add_chips() {
    TRY(kvm_ioctl(fd_.get(), KVM_CREATE_IRQCHIP, 0ul, "KVM_CREATE_IRQCHIP"));
    kvm_pit_config pit{};
    pit.flags = KVM_PIT_SPEAKER_DUMMY;
    TRY(kvm_ioctl(fd_.get(), KVM_CREATE_PIT2, &pit, "KVM_CREATE_PIT2"));
    return route_interrupts();
}

Result<void> Vm::route_interrupts() const {
    std::vector<kvm_irq_routing_entry> entries;
    for (uint32_t gsi = 0; gsi < 16; ++gsi) {
        if (gsi == 2) continue; // the cascade
        entries.push_back(route(gsi, gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE, gsi % 8));
        entries.push_back(route(gsi, KVM_IRQCHIP_IOAPIC, gsi == 0 ? 2 : gsi));
    }
    for (uint32_t gsi = 16; gsi < kIoapicPins; ++gsi)
        entries.push_back(route(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    KvmTable<kvm_irq_routing_entry> table(entries.size());
    std::copy(entries.begin(), entries.end(), table.entries());
    TRY(kvm_ioctl(fd_.get(), kSetGsiRouting, table.data(), "KVM_SET_GSI_ROUTING"));
    return {};
}

Result<void> Vm::add_memory(uint32_t slot, uint64_t gpa, uint64_t size, void* host_address, bool read_only) {
    kvm_userspace_memory_region region{};
    region.slot = slot;
    region.flags = read_only ? KVM_MEM_READONLY : 0;
    region.guest_phys_addr = gpa;
    region.memory_size = size;
    region.userspace_addr = reinterpret_cast<uint64_t>(host_address);
    TRY(kvm_ioctl(fd_.get(), KVM_SET_USER_MEMORY_REGION, &region, "KVM_SET_USER_MEMORY_REGION"));
    return {};
}

Result<void> Vm::log_writes(
    uint32_t slot, uint64_t gpa, uint64_t size, void* host_address, WriteLogging logging) const {
    kvm_userspace_memory_region region{};
    region.slot = slot;
    region.flags = logging == WriteLogging::kOn ? KVM_MEM_LOG_DIRTY_PAGES : 0;
    region.guest_phys_addr = gpa;
    region.memory_size = size;
    region.userspace_addr = reinterpret_cast<uint64_t>(host_address);
    TRY(kvm_ioctl(
        fd_.get(), KVM_SET_USER_MEMORY_REGION, &region, "KVM_SET_USER_MEMORY_REGION to log writes"));
    return {};
}

Result<void> Vm::take_writes(uint32_t slot, std::span<uint64_t> bits) const {
    kvm_dirty_log log{};
    log.slot = slot;
    log.dirty_bitmap = bits.data();
    TRY(kvm_ioctl(fd_.get(), KVM_GET_DIRTY_LOG, &log, "KVM_GET_DIRTY_LOG"));
    return {};
}

Result<UniqueFd> Vm::create_vcpu(unsigned index) {
    TRY_ASSIGN(const int raw,
        kvm_ioctl(fd_.get(), KVM_CREATE_VCPU, static_cast<unsigned long>(index), "KVM_CREATE_VCPU"));
    return UniqueFd(raw);
}

Result<void> Vm::set_irq(uint32_t gsi, bool level) const {
    kvm_irq_level irq{};
    irq.irq = gsi;
    irq.level = level ? 1 : 0;
    TRY(kvm_ioctl(fd_.get(), KVM_IRQ_LINE, &irq, "KVM_IRQ_LINE"));
    return {};
}

Result<bool> Vm::pulse_irq(uint32_t gsi) const {
    kvm_irq_level irq{};
    irq.irq = gsi;
    irq.level = 1;
    TRY(kvm_ioctl(fd_.get(), KVM_IRQ_LINE_STATUS, &irq, "KVM_IRQ_LINE_STATUS"));
    const bool merged = irq.status == 0;
    TRY(set_irq(gsi, false));
    return !merged;
}

// What KVM has for lines that a device holds until it has been served: it tells each end of interrupt.
Result<void> Vm::count_acks(uint32_t gsi, int trigger, int acks) const {
    kvm_irqfd irqfd{};
    irqfd.fd = static_cast<uint32_t>(trigger);
    irqfd.resamplefd = static_cast<uint32_t>(acks);
    irqfd.gsi = gsi;
    irqfd.flags = KVM_IRQFD_FLAG_RESAMPLE;
    TRY(kvm_ioctl(fd_.get(), KVM_IRQFD, &irqfd, "KVM_IRQFD with a resample fd"));
    return {};
}

Result<void> Vm::add_irqfd(uint32_t gsi, int event) const {
    kvm_irqfd irqfd{};
    irqfd.fd = static_cast<uint32_t>(event);
    irqfd.gsi = gsi;
    TRY(kvm_ioctl(fd_.get(), KVM_IRQFD, &irqfd, "KVM_IRQFD"));
    return {};
}

Result<void> Vm::add_ioeventfd(uint64_t gpa, uint32_t value, int event) const {
    kvm_ioeventfd ioeventfd{};
    ioeventfd.datamatch = value;
    ioeventfd.addr = gpa;
    ioeventfd.len = sizeof value;
    ioeventfd.fd = event;
    ioeventfd.flags = KVM_IOEVENTFD_FLAG_DATAMATCH;
    TRY(kvm_ioctl(fd_.get(), KVM_IOEVENTFD, &ioeventfd, "KVM_IOEVENTFD"));
    return {};
}

Result<kvm_irqchip> Vm::irqchip(uint32_t chip) const {
    kvm_irqchip state{};
    state.chip_id = chip;
    TRY(kvm_ioctl(fd_.get(), KVM_GET_IRQCHIP, &state, "KVM_GET_IRQCHIP"));
    return state;
}
Result<void> Vm::set_irqchip(kvm_irqchip chip) const {
    TRY(kvm_ioctl(fd_.get(), KVM_SET_IRQCHIP, &chip, "KVM_SET_IRQCHIP"));
    return {};
}
Result<kvm_pit_state2> Vm::pit() const {
    kvm_pit_state2 state{};
    TRY(kvm_ioctl(fd_.get(), KVM_GET_PIT2, &state, "KVM_GET_PIT2"));
    return state;
}
Result<void> Vm::set_pit(kvm_pit_state2 pit) const {
    TRY(kvm_ioctl(fd_.get(), KVM_SET_PIT2, &pit, "KVM_SET_PIT2"));
    return {};
}
Result<void> Vm::set_pit_reinject(bool reinject) const {
    kvm_reinject_control control{};
    control.pit_reinject = reinject ? 1 : 0;
    TRY(kvm_ioctl(fd_.get(), KVM_REINJECT_CONTROL, &control, "KVM_REINJECT_CONTROL"));
    return {};
}
Result<kvm_clock_data> Vm::clock() const {
    kvm_clock_data data{};
    TRY(kvm_ioctl(fd_.get(), KVM_GET_CLOCK, &data, "KVM_GET_CLOCK"));
    return data;
}
Result<void> Vm::set_clock(kvm_clock_data clock) const {
    TRY(kvm_ioctl(fd_.get(), KVM_SET_CLOCK, &clock, "KVM_SET_CLOCK"));
    return {};
}

} // namespace liveupdate::vmm
