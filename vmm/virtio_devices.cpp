#include "vmm/virtio_devices.hpp"

#include "handoff/base/fd.hpp"
#include "vmm/devices/virtio/layout.hpp"

namespace liveupdate::vmm {

Result<void> VirtioDevices::build(const handoff::proto::Machine&, handoff::NamedFds&) {
    return {};
}

Result<virtio::VirtioDevice::Place> VirtioDevices::next_place() {
    const size_t slot = devices_.size();
    if (slot >= virtio::kMaxDevices)
        return Error(ErrorCode::kRefused,
            "a machine has at most " + std::to_string(virtio::kMaxDevices) + " virtio devices");
    if (!live()) return virtio::VirtioDevice::Place{memory_, no_interrupt_};
    TRY_ASSIGN(UniqueFd event, fd::eventfd(0));
    TRY(vm_.add_irqfd(virtio::kGsis[slot], event.get()));
    return virtio::VirtioDevice::Place{memory_, interrupts_.emplace_back(std::move(event))};
}

Result<void> VirtioDevices::add(std::unique_ptr<virtio::VirtioDevice> device) {
    const uint64_t address = virtio::mmio_address(static_cast<uint32_t>(devices_.size()));
    virtio::MmioTransport& transport = device->transport();
    TRY(bus_.add(std::string(device->name()), address, virtio::kMmioSize, transport));
    if (live()) {
        auto opened = device->open();
        if (!opened) return std::move(opened).error().context(device->name());
        for (size_t i = 0; i < transport.queue_count(); ++i)
            TRY(vm_.add_ioeventfd(
                address + virtio::kQueueNotify, static_cast<uint32_t>(i), transport.kick_fd(i)));
    }
    devices_.push_back(std::move(device));
    return {};
}

void VirtioDevices::hold() {
    for (const auto& device : devices_)
        device->hold();
}

Result<void> VirtioDevices::await_held(Deadline deadline) const {
    for (const auto& device : devices_)
        if (!device->await_held(deadline))
            return Error(ErrorCode::kTimeout, std::string(device->name()) + " did not stand still in time");
    return {};
}

void VirtioDevices::unhold() {
    for (const auto& device : devices_)
        device->unhold();
}

} // namespace liveupdate::vmm
