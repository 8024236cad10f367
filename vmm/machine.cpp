#include "vmm/machine.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "handoff/base/fd.hpp"
#include "vmm/boot/kernel.hpp"
#include "vmm/boot/platform_tables.hpp"
#include "vmm/boot/reset_state.hpp"
#include "vmm/devices/virtio/layout.hpp"

namespace liveupdate::vmm {
namespace {

constexpr uint8_t kSerialGsi = 4;
constexpr uint8_t kSci = 9;
constexpr uint32_t kVcpuCapacity = 64 * 1024;
constexpr uint32_t kVmCapacity = 16 * 1024;
constexpr uint32_t kDeviceCapacity = 64 * 1024;

} // namespace

Result<std::unique_ptr<Machine>> Machine::build(Plan plan) {
    TRY_ASSIGN(Vm vm, Vm::create(*plan.system));
    TRY_ASSIGN(UniqueFd event_fd, fd::eventfd(0));
    TRY_ASSIGN(KvmSystem system, plan.system->duplicate());
    const bool virtio_console = plan.manifest->machine.console_device() == kVirtioConsole;
    std::unique_ptr<Machine> machine(new Machine(std::move(system), std::move(vm), std::move(plan.console),
        virtio_console ? ConsoleDevice::kVirtio : ConsoleDevice::kSerial, std::move(event_fd)));
    TRY(machine->map_ram(*plan.manifest, plan.ram));
    TRY(machine->vm_.add_chips());
    TRY(machine->add_devices());
    // Where KVM cannot count them, an update may lose ticks that it owes a slow guest.
    static_cast<void>(machine->pit_.count_ticks(machine->vm_));
    TRY(machine->add_virtio(plan));
    return machine;
}

Machine::Machine(
    KvmSystem system, Vm vm, std::unique_ptr<Console> console, ConsoleDevice device, UniqueFd event_fd)
    : system_(std::move(system)), vm_(std::move(vm)), console_(std::move(console)),
      serial_line_(vm_, kSerialGsi),
      serial_("serial0", serial_line_,
          device == ConsoleDevice::kSerial ? static_cast<ConsoleBackend&>(*console_) : no_console_),
      debug_exit_(*this), keyboard_reset_(*this), reset_control_(*this), sci_line_(vm_, kSci),
      acpi_pm_(sci_line_, *this, clock_), generation_line_(vm_, kGenerationGsi),
      generation_(generation_line_), rtc_(clock_), event_fd_(std::move(event_fd)) {}

Machine::~Machine() = default;

Result<void> Machine::map_ram(const handoff::Manifest& manifest, handoff::MapMode mode) {
    uint32_t slot = 0;
    for (const handoff::RamRegion& region : manifest.regions) {
        const handoff::RamBlock& block = manifest.blocks[region.block];
        auto mapped = handoff::SharedMapping::map(block.file.get(), region.offset, region.size, mode);
        if (!mapped) return std::move(mapped).error().context("RAM block " + block.name);
        ::madvise(mapped->data(), mapped->size(), MADV_DONTDUMP);
        TRY(vm_.add_memory(slot++, region.gpa, region.size, mapped->data(), region.read_only));
        if (manifest.machine.witness_gpa() != 0 && region.gpa == manifest.machine.witness_gpa())
            witness_ = mapped->data();
        ram_.push_back(std::move(mapped).value());
    }
    return {};
}

Result<void> Machine::add_devices() {
    TRY(bus_.add("serial0", Serial::kCom1, Serial::kPorts, serial_));
    TRY(bus_.add("debug-exit", DebugExit::kPort, DebugExit::kPorts, debug_exit_));
    TRY(bus_.add("keyboard-reset", KeyboardResetPort::kPort, KeyboardResetPort::kPorts, keyboard_reset_));
    TRY(bus_.add("reset-control", ResetControl::kPort, ResetControl::kPorts, reset_control_));
    TRY(bus_.add("acpi-pm", AcpiPm::kPort, AcpiPm::kPorts, acpi_pm_));
    TRY(bus_.add("rtc", Rtc::kPort, Rtc::kPorts, rtc_));
    for (Device* device : std::initializer_list<Device*>{
             &serial_, &debug_exit_, &keyboard_reset_, &reset_control_, &acpi_pm_, &rtc_})
        if (std::holds_alternative<StateSchema>(device->state())) saved_devices_.push_back(device);
    return {};
}

Result<void> Machine::add_virtio(Plan& plan) {
    using Purpose = VirtioDevices::Purpose;
    TRY_ASSIGN(GuestMemory memory, low_level_view(*plan.manifest));
    memory_.emplace(std::move(memory));
    virtio_.emplace(vm_, mmio_, *memory_, *console_,
        plan.ram == handoff::MapMode::kPrivate ? Purpose::kTrial : Purpose::kLive);
    handoff::NamedFds none;
    TRY(virtio_->build(plan.manifest->machine, plan.fds != nullptr ? *plan.fds : none,
        plan.kept != nullptr ? *plan.kept : none, plan.rings));
    console_frontend_ = virtio_->console_frontend();
    if (console_frontend_ == nullptr) {
        console_frontend_ = &serial_;
        console_->connect(serial_);
    }
    for (const auto& device : virtio_->all())
        saved_devices_.push_back(device.get());
    return {};
}

Result<void> Machine::set_cpuid(const Cpuid& cpuid) {
    for (auto& vcpu : vcpus_)
        TRY(vcpu->set_cpuid(system_, cpuid));
    return {};
}

Result<void> Machine::add_vcpus(unsigned count) {
    for (unsigned i = 0; i < count; ++i) {
        TRY_ASSIGN(auto vcpu, Vcpu::create(system_, vm_, i));
        vcpus_.push_back(std::move(vcpu));
    }
    return {};
}

Result<void> Machine::populate(const handoff::Manifest& manifest) const {
    for (size_t i = 0; i < ram_.size(); ++i) {
        const handoff::RamRegion& region = manifest.regions[i];
        if (region.read_only) continue;
        const int file = manifest.blocks[region.block].file.get();
        TRY(handoff::populate(ram_[i], manifest.blocks[region.block], region.offset));
        if (system_.extension(kCapPreFaultMemory) == 0 || vcpus_.empty()) continue;
        for (const handoff::DataRange& range : handoff::data_ranges(file, region.offset, region.size))
            TRY(vcpus_[0]->pre_fault(region.gpa + (range.offset - region.offset), range.size));
    }
    return {};
}

// What is left out is filled by the guest's own touches.
void Machine::populate_behind(const handoff::Manifest& manifest, const std::stop_token& stop) const {
    for (size_t i = 0; i < ram_.size(); ++i) {
        const handoff::RamRegion& region = manifest.regions[i];
        const handoff::RamBlock& block = manifest.blocks[region.block];
        if (!region.read_only)
            static_cast<void>(handoff::populate(ram_[i], block, region.offset, stop).has_value());
    }
}

Result<void> Machine::begin_write_log(const handoff::Manifest& manifest) {
    memory_->write_log().begin(memory_->pages());
    for (uint32_t i = 0; i < ram_.size(); ++i)
        if (!manifest.regions[i].read_only)
            TRY(vm_.log_writes(
                i, manifest.regions[i].gpa, ram_[i].size(), ram_[i].data(), Vm::WriteLogging::kOn));
    return {};
}

void Machine::end_write_log(const handoff::Manifest& manifest) {
    memory_->write_log().end();
    for (uint32_t i = 0; i < ram_.size(); ++i)
        if (!manifest.regions[i].read_only)
            static_cast<void>(vm_.log_writes(
                i, manifest.regions[i].gpa, ram_[i].size(), ram_[i].data(), Vm::WriteLogging::kOff));
}

Result<void> Machine::collect_writes(const handoff::Manifest& manifest, const handoff::WriteMap& map) {
    const auto set = [&](const handoff::RamRegion& region, uint64_t page) {
        const uint64_t in_block = region.offset / kPageSize + page;
        map.of(region.block)[in_block / 8] |= static_cast<uint8_t>(1u << in_block % 8);
    };
    std::vector<uint64_t> first; // of each region that devices see, in their count
    uint64_t pages = 0;
    for (const MemoryRegion& region : memory_->regions()) {
        first.push_back(pages);
        pages += region.size / kPageSize;
    }
    memory_->write_log().collect([&](uint64_t page) {
        const auto after = std::upper_bound(first.begin(), first.end(), page);
        const auto which = static_cast<size_t>(after - first.begin()) - 1;
        const uint64_t gpa = memory_->regions()[which].gpa + (page - first[which]) * kPageSize;
        for (const handoff::RamRegion& region : manifest.regions)
            if (gpa >= region.gpa && gpa - region.gpa < region.size)
                set(region, (gpa - region.gpa) / kPageSize);
    });
    for (uint32_t i = 0; i < ram_.size(); ++i) {
        if (manifest.regions[i].read_only) continue;
        std::vector<uint64_t> bits((ram_[i].size() / kPageSize + 63) / 64);
        TRY(vm_.take_writes(i, bits));
        for (size_t word = 0; word < bits.size(); ++word)
            for (uint64_t rest = bits[word], bit = 0; rest != 0; rest >>= 1, ++bit)
                if ((rest & 1) != 0) set(manifest.regions[i], word * 64 + bit);
    }
    return {};
}

Result<GuestMemory> Machine::low_level_view(const handoff::Manifest& manifest) const {
    std::vector<MemoryRegion> regions;
    std::vector<std::span<uint8_t>> bytes;
    for (size_t i = 0; i < ram_.size(); ++i) {
        const handoff::RamRegion& r = manifest.regions[i];
        if (r.read_only || ram_[i].data() == witness_) continue;
        regions.push_back({r.gpa, r.size, bytes.size(), 0});
        bytes.emplace_back(reinterpret_cast<uint8_t*>(ram_[i].data()), ram_[i].size());
    }
    return GuestMemory::over(std::move(regions), bytes);
}

Platform Machine::platform(const handoff::proto::Machine& machine) const {
    Platform platform;
    platform.vcpus = static_cast<unsigned>(vcpus_.size());
    platform.pm_event_port = AcpiPm::kEventPort;
    platform.pm_control_port = AcpiPm::kControlPort;
    platform.pm_timer_port = AcpiPm::kTimerPort;
    platform.soft_off_type = AcpiPm::kSoftOffType;
    platform.sci = kSci;
    platform.reset_port = ResetControl::kPort;
    platform.reset_value = ResetControl::kResetValue;
    platform.serial_port = Serial::kCom1;
    platform.serial_irq = kSerialGsi;
    platform.rtc_port = Rtc::kPort;
    platform.rtc_irq = Rtc::kIrq;
    platform.rtc_century = Rtc::kCentury;
    platform.generation_id = machine.generation_id_gpa();
    platform.generation_gsi = kGenerationGsi;
    for (uint32_t slot = 0; slot < virtio_->all().size(); ++slot)
        platform.virtio.push_back({static_cast<uint32_t>(virtio::mmio_address(slot)),
            static_cast<uint32_t>(virtio::kMmioSize), virtio::kGsis[slot]});
    return platform;
}

Result<void> Machine::boot(const handoff::Manifest& manifest, int kernel_fd, int initrd_fd) {
    if (vcpus_.empty()) return Error(ErrorCode::kInternal, "boot: the machine has no vCPU");
    if (manifest.machine.boot() == "firmware") {
        // The image lies in a RAM block of its own, put there by whoever made the manifest.
        return vcpus_[0]->set_initial_state(reset_state());
    }
    TRY_ASSIGN(const GuestMemory memory, low_level_view(manifest));
    KernelFiles files;
    files.kernel = kernel_fd;
    files.initrd = initrd_fd;
    files.command_line = manifest.machine.cmdline();
    TRY_ASSIGN(files.rsdp, write_platform_tables(memory, platform(manifest.machine)));
    TRY(GenerationId::draw(manifest.machine, memory));
    TRY_ASSIGN(const InitialState state, load_kernel(memory, files));
    return vcpus_[0]->set_initial_state(state);
}

WitnessSlot* Machine::witness(unsigned vcpu) const {
    if (witness_ == nullptr || vcpu >= kWitnessSlots) return nullptr;
    return reinterpret_cast<WitnessSlot*>(witness_) + vcpu;
}

std::vector<handoff::SectionInfo> Machine::sections() const {
    std::vector<handoff::SectionInfo> sections;
    for (const auto& vcpu : vcpus_) {
        sections.push_back({kVcpuSection, vcpu->index(), kStateVersion, kVcpuCapacity});
        sections.push_back({kInterruptsSection, vcpu->index(), kStateVersion, kVcpuCapacity});
    }
    sections.push_back({kVmSection, 0, kStateVersion, kVmCapacity});
    for (const Device* device : saved_devices_) {
        const auto schema = std::get<StateSchema>(device->state());
        sections.push_back({schema.section, schema.instance, schema.version, kDeviceCapacity});
    }
    return sections;
}

void Machine::end(handoff::proto::GuestEvent event) {
    const std::lock_guard lock(event_mutex_);
    if (ended_.load()) return;
    event_ = std::move(event);
    ended_.store(true, std::memory_order_release);
    const uint64_t one = 1;
    static_cast<void>(::write(event_fd_.get(), &one, sizeof(one)));
}

void Machine::request_exit(uint32_t status) {
    handoff::proto::GuestEvent event;
    event.set_kind(handoff::proto::GuestEvent::EXITED);
    event.set_status(status);
    end(std::move(event));
}

// An orderly end, which a debug exit cannot claim: its status is never 0.
void Machine::request_power_off() {
    handoff::proto::GuestEvent event;
    event.set_kind(handoff::proto::GuestEvent::EXITED);
    event.set_status(0);
    event.set_powered_off(true);
    end(std::move(event));
}

void Machine::request_reset() {
    handoff::proto::GuestEvent event;
    event.set_kind(handoff::proto::GuestEvent::RESET);
    end(std::move(event));
}

void Machine::fault(std::string detail) {
    handoff::proto::GuestEvent event;
    event.set_kind(handoff::proto::GuestEvent::FAULTED);
    event.set_detail(std::move(detail));
    end(std::move(event));
}

std::optional<handoff::proto::GuestEvent> Machine::take_event() {
    uint64_t count = 0;
    static_cast<void>(::read(event_fd_.get(), &count, sizeof(count)));
    const std::lock_guard lock(event_mutex_);
    return std::exchange(event_, std::nullopt);
}

} // namespace liveupdate::vmm
