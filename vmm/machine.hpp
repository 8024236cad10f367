// A whole virtual machine without the threads that run it: RAM, KVM VM, vCPUs, devices.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "handoff/channel.hpp"
#include "handoff/guest.hpp"
#include "handoff/manifest.hpp"
#include "handoff/write_map.hpp"
#include "vmm/boot/memory_map.hpp"
#include "vmm/boot/platform.hpp"
#include "vmm/devices/acpi_pm.hpp"
#include "vmm/devices/console.hpp"
#include "vmm/devices/debug_exit.hpp"
#include "vmm/devices/host_clock.hpp"
#include "vmm/devices/machine_control.hpp"
#include "vmm/devices/mmio_bus.hpp"
#include "vmm/devices/pio_bus.hpp"
#include "vmm/devices/reset.hpp"
#include "vmm/devices/rtc.hpp"
#include "vmm/devices/serial.hpp"
#include "vmm/generation_id.hpp"
#include "vmm/kvm/irq_line.hpp"
#include "vmm/kvm/pit_keeper.hpp"
#include "vmm/kvm/vcpu.hpp"
#include "vmm/kvm/vm.hpp"
#include "vmm/virtio_devices.hpp"
#include "vmm/witness.hpp"

namespace liveupdate::vmm {

// The machine's own state sections, and the version of all three.
inline constexpr const char* kVcpuSection = "vcpu";
inline constexpr const char* kInterruptsSection = "vcpu-interrupts";
inline constexpr const char* kVmSection = "vm";
inline constexpr uint32_t kStateVersion = 1;
inline constexpr uint32_t kMaxVcpus = 64;

class Machine final : public MachineControl {
public:
    struct Plan {
        const KvmSystem* system = nullptr;
        const handoff::Manifest* manifest = nullptr;
        handoff::MapMode ram = handoff::MapMode::kShared; // kPrivate: a machine to be thrown away
        std::unique_ptr<Console> console;
        // Back ends of devices are taken out of `fds`, duplicates go to `kept`; not for a trial.
        handoff::NamedFds* fds = nullptr;
        handoff::NamedFds* kept = nullptr;
        virtio::FormerRings rings = virtio::FormerRings::kCarried;
    };

    // Maps RAM, makes the VM and the devices; vCPUs come with add_vcpus().
    static Result<std::unique_ptr<Machine>> build(Plan plan);
    ~Machine() override;

    Result<void> add_vcpus(unsigned count);
    // Before the first run; `cpuid` is vCPU 0's.
    Result<void> set_cpuid(const Cpuid& cpuid);
    // Fills the page tables of all RAM that has pages: the host's, and KVM's own where it can be told to.
    Result<void> populate(const handoff::Manifest& manifest) const;
    // The host's alone, while the guest runs; returns once `stop` is requested.
    void populate_behind(const handoff::Manifest& manifest, const std::stop_token& stop) const;
    // Loads the kernel, unless the manifest starts firmware, and sets vCPU 0's registers. Borrowed fds; -1
    // for what there is not.
    Result<void> boot(const handoff::Manifest& manifest, int kernel_fd, int initrd_fd);

    // Logs what is written to RAM from now on, by vCPUs, KVM and devices. The session's thread.
    Result<void> begin_write_log(const handoff::Manifest& manifest);
    void end_write_log(const handoff::Manifest& manifest);
    // Adds what was written since the last time to `map`.
    Result<void> collect_writes(const handoff::Manifest& manifest, const handoff::WriteMap& map);

    const KvmSystem& system() const { return system_; }
    Vm& vm() { return vm_; }
    PitKeeper& pit() { return pit_; }
    Console& console() { return *console_; }
    // The device that the console is connected to.
    ConsoleFrontend& console_frontend() { return *console_frontend_; }
    AcpiPm& acpi_pm() { return acpi_pm_; }
    GenerationId& generation() { return generation_; }
    const GuestMemory& memory() const { return *memory_; } // what devices may touch
    const PioBus& bus() const { return bus_; }
    const MmioBus& mmio() const { return mmio_; }
    std::vector<std::unique_ptr<Vcpu>>& vcpus() { return vcpus_; }
    VirtioDevices& virtio() { return *virtio_; }
    // Devices that have state, by the order of their sections.
    const std::vector<Device*>& saved_devices() const { return saved_devices_; }
    WitnessSlot* witness(unsigned vcpu) const;
    // Where region `index` of the manifest is mapped.
    std::span<std::byte> ram(size_t index) const { return ram_[index].bytes(); }

    // What this machine's state consists of: each vCPU's two sections, the VM's, then the devices'.
    std::vector<handoff::SectionInfo> sections() const;

    // MachineControl, and faults that vCPU threads meet. The first event ends the machine for good.
    void request_exit(uint32_t status) override;
    void request_power_off() override;
    void request_reset() override;
    void fault(std::string detail);
    bool ended() const { return ended_.load(std::memory_order_acquire); }
    // Readable once there is an event.
    int event_fd() const { return event_fd_.get(); }
    std::optional<handoff::proto::GuestEvent> take_event();

private:
    enum class ConsoleDevice { kSerial, kVirtio };
    Machine(
        KvmSystem system, Vm vm, std::unique_ptr<Console> console, ConsoleDevice device, UniqueFd event_fd);
    Result<void> map_ram(const handoff::Manifest& manifest, handoff::MapMode mode);
    Result<void> add_devices();
    Platform platform(const handoff::proto::Machine& machine) const;
    Result<void> add_virtio(Plan& plan);
    Result<GuestMemory> low_level_view(const handoff::Manifest& manifest) const;
    void end(handoff::proto::GuestEvent event);

    KvmSystem system_;
    std::vector<handoff::SharedMapping> ram_; // by region; outlives the VM
    std::byte* witness_ = nullptr;
    Vm vm_;
    PitKeeper pit_;
    std::unique_ptr<Console> console_;
    NoConsole no_console_;
    KvmIrqLine serial_line_;
    Serial serial_;
    ConsoleFrontend* console_frontend_ = nullptr;
    DebugExit debug_exit_;
    KeyboardResetPort keyboard_reset_;
    ResetControl reset_control_;
    SystemClock clock_;
    KvmIrqLine sci_line_;
    AcpiPm acpi_pm_;
    KvmIrqLine generation_line_;
    GenerationId generation_;
    Rtc rtc_;
    PioBus bus_;
    MmioBus mmio_;
    std::optional<GuestMemory> memory_;
    std::optional<VirtioDevices> virtio_;
    std::vector<Device*> saved_devices_;
    std::vector<std::unique_ptr<Vcpu>> vcpus_;

    UniqueFd event_fd_;
    std::atomic<bool> ended_{false};
    std::mutex event_mutex_;
    std::optional<handoff::proto::GuestEvent> event_;
};

} // namespace liveupdate::vmm
