#include "vmm/virtio_devices.hpp"

#include <bit>
#include <charconv>
#include <thread>

#include "handoff/base/fd.hpp"
#include "handoff/base/words.hpp"
#include "vmm/devices/virtio/blk.hpp"
#include "vmm/devices/virtio/console.hpp"
#include "vmm/devices/virtio/layout.hpp"
#include "vmm/devices/virtio/net.hpp"
#include "vmm/devices/virtio/rng.hpp"

namespace liveupdate::vmm {
namespace {

constexpr auto kLook = std::chrono::milliseconds(1); // at requests that end elsewhere
constexpr size_t kMaxRings = 8; // of one device: updates that were faster than its slowest request

Result<void> check_disk(const handoff::proto::Disk& disk, uint32_t instance) {
    const std::string name = "disk" + std::to_string(instance);
    if (disk.name() != name)
        return Error(ErrorCode::kRefused, "a disk is not called " + name + ", as the rule is");
    const bool block_size_fits =
        std::has_single_bit(disk.block_size()) && disk.block_size() >= 512 && disk.block_size() <= 4096;
    if (disk.queues() == 0 || disk.queues() > virtio::Blk::kMaxQueues || !block_size_fits ||
        disk.sectors() > (uint64_t{1} << 54) || disk.serial().size() > virtio::blk::kIdBytes)
        return Error(ErrorCode::kRefused, name + " has queues, sizes or a serial that cannot be");
    return {};
}

// Those of "disk0" are called "disk0-ring-" and the ring's number.
Result<std::vector<virtio::ForeignRing>> take_rings(const std::string& device, handoff::NamedFds& fds) {
    const std::string prefix = device + "-ring-";
    std::vector<virtio::ForeignRing> rings;
    for (auto it = fds.begin(); it != fds.end();) {
        const std::string& name = it->first;
        if (name.compare(0, prefix.size(), prefix) != 0) {
            ++it;
            continue;
        }
        uint32_t id = 0;
        const auto parsed = std::from_chars(name.data() + prefix.size(), name.data() + name.size(), id);
        if (parsed.ec != std::errc() || parsed.ptr != name.data() + name.size() || id == 0 || id > INT32_MAX)
            return Error(ErrorCode::kRefused, "an io_uring of " + device + " has no number");
        if (rings.size() == kMaxRings)
            return Error(ErrorCode::kBusy, device + " has requests in flight from " +
                                               std::to_string(kMaxRings) +
                                               " updates; wait until it has caught up");
        auto ring = virtio::ForeignRing::map(id, std::move(it->second));
        if (!ring) return std::move(ring).error().context(name);
        rings.push_back(std::move(*ring));
        it = fds.erase(it);
    }
    return rings;
}

Result<virtio::NetSpec> check_net(const handoff::proto::Net& net, uint32_t instance) {
    const std::string name = "net" + std::to_string(instance);
    if (net.name() != name)
        return Error(ErrorCode::kRefused, "a network card is not called " + name + ", as the rule is");
    virtio::NetSpec spec;
    const bool addressed = net.mac().size() == spec.mac.size();
    if (addressed) std::copy(net.mac().begin(), net.mac().end(), spec.mac.begin());
    if (!addressed || virtio::is_multicast(spec.mac))
        return Error(ErrorCode::kRefused, name + " has an address that cannot be a card's");
    if (net.queues() == 0 || net.queues() > virtio::kMaxQueuePairs || net.mtu() < virtio::kLeastMtu ||
        net.mtu() > UINT16_MAX || (net.offloads() & ~virtio::kKnownTapOffloads) != 0)
        return Error(ErrorCode::kRefused, name + " has queues, an MTU or offloads that cannot be");
    spec.instance = instance;
    spec.queue_pairs = static_cast<uint16_t>(net.queues());
    spec.mtu = static_cast<uint16_t>(net.mtu());
    spec.tap_offloads = net.offloads();
    return spec;
}

// Those of "net0" are called "net0", "net0-1" and so on.
Result<std::vector<virtio::Tap>> take_taps(
    const handoff::proto::Net& net, handoff::NamedFds& fds, handoff::NamedFds& kept) {
    std::vector<virtio::Tap> taps;
    for (uint32_t queue = 0; queue < net.queues(); ++queue) {
        const std::string name = queue == 0 ? net.name() : net.name() + "-" + std::to_string(queue);
        TRY_ASSIGN(UniqueFd fd, handoff::take_fd(fds, name));
        TRY_ASSIGN(kept[name], fd::dup(fd.get()));
        auto tap = virtio::Tap::adopt(std::move(fd));
        if (!tap) return std::move(tap).error().context(name);
        taps.push_back(std::move(*tap));
    }
    return taps;
}

} // namespace

Result<void> VirtioDevices::build(const handoff::proto::Machine& machine, handoff::NamedFds& fds,
    handoff::NamedFds& kept, virtio::FormerRings rings) {
    uint32_t disks = 0;
    for (const auto& disk : machine.disks())
        TRY(add_disk(disk, disks++, fds, kept, rings));
    uint32_t nets = 0;
    for (const auto& net : machine.nets())
        TRY(add_net(net, nets++, fds, kept));
    if (machine.rng()) TRY(add_rng());
    if (machine.console_device() == kVirtioConsole)
        TRY(add_console());
    else if (!machine.console_device().empty())
        return Error(ErrorCode::kRefused,
            "this VMM knows no console device '" + printable(machine.console_device(), 20) + "'");
    return {};
}

Result<void> VirtioDevices::add_disk(const handoff::proto::Disk& disk, uint32_t instance,
    handoff::NamedFds& fds, handoff::NamedFds& kept, virtio::FormerRings rings) {
    TRY(check_disk(disk, instance));
    TRY_ASSIGN(const auto place, next_place());
    virtio::Blk::Config config;
    config.name = disk.name();
    config.instance = instance;
    config.queues = static_cast<uint16_t>(disk.queues());
    config.capacity = disk.sectors();
    config.block_size = disk.block_size();
    config.read_only = disk.read_only();
    config.serial = disk.serial();
    std::optional<virtio::Blk::BackEnd> back_end;
    if (live()) {
        back_end.emplace();
        back_end->former_rings = rings;
        TRY_ASSIGN(back_end->file, handoff::take_fd(fds, disk.name()));
        TRY_ASSIGN(kept[disk.name()], fd::dup(back_end->file.get()));
        TRY_ASSIGN(back_end->rings, take_rings(disk.name(), fds));
    }
    return add(std::make_unique<virtio::Blk>(place, std::move(config), std::move(back_end)));
}

Result<void> VirtioDevices::add_net(
    const handoff::proto::Net& net, uint32_t instance, handoff::NamedFds& fds, handoff::NamedFds& kept) {
    TRY_ASSIGN(const auto spec, check_net(net, instance));
    TRY_ASSIGN(const auto place, next_place());
    std::vector<virtio::Tap> taps;
    if (live()) {
        TRY_ASSIGN(taps, take_taps(net, fds, kept));
    }
    return add(std::make_unique<virtio::Net>(spec, std::move(taps), place));
}

Result<void> VirtioDevices::add_rng() {
    TRY_ASSIGN(const auto place, next_place());
    return add(std::make_unique<virtio::Rng>(place));
}

Result<void> VirtioDevices::add_console() {
    TRY_ASSIGN(const auto place, next_place());
    auto device = std::make_unique<virtio::ConsolePort>(console_, place);
    console_.connect(*device);
    frontend_ = device.get();
    return add(std::move(device));
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

std::vector<handoff::FdToSend> VirtioDevices::carried() const {
    std::vector<handoff::FdToSend> fds;
    for (const auto& device : devices_)
        for (auto& each : device->carried())
            fds.push_back({std::move(each.name), each.fd});
    return fds;
}

std::string VirtioDevices::await_rest(Deadline deadline) const {
    for (const auto& device : devices_)
        while (!device->at_rest()) {
            if (deadline.passed()) return std::string(device->name());
            std::this_thread::sleep_for(kLook);
        }
    return {};
}

void VirtioDevices::unhold() {
    for (const auto& device : devices_)
        device->unhold();
}

} // namespace liveupdate::vmm
