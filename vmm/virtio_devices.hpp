// All virtio devices of a machine, each wired to its place on the MMIO bus and to its interrupt.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "handoff/channel.hpp"
#include "handoff/manifest.hpp"
#include "vmm/devices/console.hpp"
#include "vmm/devices/mmio_bus.hpp"
#include "vmm/devices/virtio/former_rings.hpp"
#include "vmm/devices/virtio/virtio_device.hpp"
#include "vmm/kvm/irq_line.hpp"
#include "vmm/kvm/vm.hpp"

namespace liveupdate::vmm {

// Machine.console_device in a manifest: the console is a virtio device's, not the serial port's.
inline constexpr const char* kVirtioConsole = "virtio";

class VirtioDevices {
public:
    // What kind of machine it is for: in a trial nothing is opened, wired or run; state is loaded and saved.
    enum class Purpose { kLive, kTrial };

    // All outlive the devices.
    VirtioDevices(Vm& vm, MmioBus& bus, const GuestMemory& memory, Console& console, Purpose purpose)
        : vm_(vm), bus_(bus), memory_(memory), console_(console), purpose_(purpose) {}

    // The devices that `machine` names, by rising slot: the same order for every VMM of the guest. A live
    // machine's back ends are taken out of `fds`; what the supervisor gave is duplicated into `kept`, for a
    // supervisor that comes later.
    Result<void> build(const handoff::proto::Machine& machine, handoff::NamedFds& fds,
        handoff::NamedFds& kept, virtio::FormerRings rings);

    const std::vector<std::unique_ptr<virtio::VirtioDevice>>& all() const { return devices_; }
    // The device that the console was connected to; null when there is none among these.
    ConsoleFrontend* console_frontend() const { return frontend_; }

    // All of them; see VirtioDevice.
    void hold();
    Result<void> await_held(Deadline deadline) const;
    void unhold();

    // What only this process has and the next one needs. Borrowed.
    std::vector<handoff::FdToSend> carried() const;
    // The guest runs elsewhere: waits for what the kernel still does for requests of this process. The name
    // of a device that was not done by the deadline, or nothing.
    std::string await_rest(Deadline deadline) const;

private:
    Result<void> add_disk(const handoff::proto::Disk& disk, uint32_t instance, handoff::NamedFds& fds,
        handoff::NamedFds& kept, virtio::FormerRings rings);
    Result<void> add_net(
        const handoff::proto::Net& net, uint32_t instance, handoff::NamedFds& fds, handoff::NamedFds& kept);
    Result<void> add_rng();
    Result<void> add_console();
    // The next slot's place; the device that is made for it is given to add().
    Result<virtio::VirtioDevice::Place> next_place();
    Result<void> add(std::unique_ptr<virtio::VirtioDevice> device);
    bool live() const { return purpose_ == Purpose::kLive; }

    Vm& vm_;
    MmioBus& bus_;
    const GuestMemory& memory_;
    Console& console_;
    ConsoleFrontend* frontend_ = nullptr;
    const Purpose purpose_;
    virtio::NoInterrupt no_interrupt_;
    std::deque<KvmEdge> interrupts_;
    std::vector<std::unique_ptr<virtio::VirtioDevice>> devices_;
};

} // namespace liveupdate::vmm
