#include "vmm/devices/virtio/mmio_transport.hpp"

#include <unistd.h>

#include <array>
#include <bit>

#include "handoff/base/fd.hpp"

namespace liveupdate::vmm::virtio {
namespace {

constexpr uint32_t kMagic = 0x74726976; // "virt"
constexpr uint32_t kVersion = 2;
constexpr uint32_t kVendor = 0x554d564c;
constexpr uint32_t kDriverStatusBits =
    kStatusAcknowledge | kStatusDriver | kStatusDriverOk | kStatusFeaturesOk | kStatusFailed;
constexpr uint32_t kInterruptUsed = 1;
constexpr uint32_t kInterruptConfig = 2;

enum Register : uint64_t {
    kMagicValue = 0x000,
    kVersionValue = 0x004,
    kDeviceId = 0x008,
    kVendorId = 0x00c,
    kDeviceFeatures = 0x010,
    kDeviceFeaturesSelect = 0x014,
    kDriverFeatures = 0x020,
    kDriverFeaturesSelect = 0x024,
    kQueueSelect = 0x030,
    kQueueSizeMax = 0x034,
    kQueueSize = 0x038,
    kQueueReady = 0x044,
    kInterruptStatus = 0x060,
    kInterruptAcknowledge = 0x064,
    kStatus = 0x070,
    kQueueDescriptorsLow = 0x080,
    kQueueDescriptorsHigh = 0x084,
    kQueueAvailableLow = 0x090,
    kQueueAvailableHigh = 0x094,
    kQueueUsedLow = 0x0a0,
    kQueueUsedHigh = 0x0a4,
    kSharedMemoryLengthLow = 0x0b0,
    kSharedMemoryLengthHigh = 0x0b4,
    kSharedMemoryBaseLow = 0x0b8,
    kSharedMemoryBaseHigh = 0x0bc,
    kConfigGeneration = 0x0fc,
    kConfig = 0x100,
};

uint32_t half(uint64_t value, uint32_t select) {
    return select > 1 ? 0 : static_cast<uint32_t>(value >> (32 * select));
}

void set_low(uint64_t& target, uint32_t value) {
    target = (target & ~uint64_t{UINT32_MAX}) | value;
}

void set_high(uint64_t& target, uint32_t value) {
    target = (target & UINT32_MAX) | uint64_t{value} << 32;
}

} // namespace

MmioTransport::MmioTransport(
    TransportUser& user, Worker& worker, const GuestMemory& memory, EdgeInterrupt& interrupt)
    : user_(user), worker_(worker), memory_(memory), interrupt_(interrupt) {
    for (const uint16_t limit : user.queue_limits())
        registers_.push_back({limit, false, {}, {}});
    queues_.resize(registers_.size());
    kicks_.resize(registers_.size());
}

Result<void> MmioTransport::open() {
    for (UniqueFd& kick : kicks_) {
        TRY_ASSIGN(kick, fd::eventfd(0));
    }
    return {};
}

uint64_t MmioTransport::read(uint64_t offset, unsigned size) {
    user_.settle();
    if (offset >= kConfig) {
        std::array<uint8_t, 8> bytes{};
        user_.read_config(offset - kConfig, std::span(bytes).first(size));
        return std::bit_cast<uint64_t>(bytes);
    }
    if (size != 4 || offset % 4 != 0) return 0; // the registers are 32 bits wide (4.2.2.2)
    return read_register(offset);
}

void MmioTransport::write(uint64_t offset, unsigned size, uint64_t value) {
    if (offset >= kConfig) {
        const auto bytes = std::bit_cast<std::array<uint8_t, 8>>(value);
        user_.write_config(offset - kConfig, std::span(bytes).first(size));
        return;
    }
    if (size != 4 || offset % 4 != 0) return;
    const auto word = static_cast<uint32_t>(value);
    if (offset == kQueueNotify) return notify(word);
    user_.settle();
    write_register(offset, word);
    // A driver goes by the write of 0 alone: when it returns, nothing of before may happen any more.
    if (offset == kStatus && word == 0) user_.settle();
}

uint32_t MmioTransport::read_register(uint64_t offset) {
    const std::lock_guard lock(mutex_);
    switch (offset) {
    case kMagicValue:
        return kMagic;
    case kVersionValue:
        return kVersion;
    case kDeviceId:
        return user_.device_id();
    case kVendorId:
        return kVendor;
    case kDeviceFeatures:
        return half(offered(), device_features_select_);
    case kInterruptStatus:
        return interrupt_status_.load();
    case kStatus:
        return status_.load();
    case kConfigGeneration:
        return config_generation_.load();
    case kSharedMemoryLengthLow:
    case kSharedMemoryLengthHigh:
    case kSharedMemoryBaseLow:
    case kSharedMemoryBaseHigh:
        return UINT32_MAX; // there is no region of shared memory
    default:
        return read_queue_register(offset);
    }
}

uint32_t MmioTransport::read_queue_register(uint64_t offset) const {
    const QueueRegisters* queue = selected();
    if (queue == nullptr) return 0;
    switch (offset) {
    case kQueueSizeMax:
        return queue->limit;
    case kQueueReady:
        return queue->ready ? 1 : 0;
    default:
        return 0; // only for writing, or nothing at all
    }
}

void MmioTransport::write_register(uint64_t offset, uint32_t value) {
    const std::lock_guard lock(mutex_);
    switch (offset) {
    case kDeviceFeaturesSelect:
        device_features_select_ = value;
        return;
    case kDriverFeatures:
        return write_features(value);
    case kDriverFeaturesSelect:
        driver_features_select_ = value;
        return;
    case kQueueSelect:
        queue_select_ = value;
        return;
    case kInterruptAcknowledge:
        interrupt_status_.fetch_and(~value);
        return;
    case kStatus:
        return write_status(value);
    default:
        return write_queue_register(offset, value);
    }
}

void MmioTransport::write_features(uint32_t value) {
    if ((status_.load() & kStatusFeaturesOk) != 0) return; // settled
    if (driver_features_select_ == 0) set_low(driver_features_, value);
    if (driver_features_select_ == 1) set_high(driver_features_, value);
}

void MmioTransport::write_queue_register(uint64_t offset, uint32_t value) {
    QueueRegisters* queue = selected();
    if (queue == nullptr) return;
    if (offset == kQueueReady) return write_ready(*queue, value);
    if (queue->ready) return; // 4.2.2.2: the driver must not
    switch (offset) {
    case kQueueSize:
        queue->layout.size =
            value <= queue->limit && std::has_single_bit(value) ? static_cast<uint16_t>(value) : uint16_t{0};
        return;
    case kQueueDescriptorsLow:
        return set_low(queue->layout.descriptors, value);
    case kQueueDescriptorsHigh:
        return set_high(queue->layout.descriptors, value);
    case kQueueAvailableLow:
        return set_low(queue->layout.available, value);
    case kQueueAvailableHigh:
        return set_high(queue->layout.available, value);
    case kQueueUsedLow:
        return set_low(queue->layout.used, value);
    case kQueueUsedHigh:
        return set_high(queue->layout.used, value);
    default:
        return; // read-only, or nothing at all
    }
}

// A queue cannot be taken out of use alone, since VIRTIO_F_RING_RESET is not offered, nor come into use once
// the driver is ready.
void MmioTransport::write_ready(QueueRegisters& queue, uint32_t value) {
    if ((status_.load() & kStatusDriverOk) != 0) return;
    queue.ready = value == 1 && queue.layout.size != 0;
}

void MmioTransport::write_status(uint32_t value) {
    if (value == 0) return reset();
    const uint32_t before = status_.load();
    uint32_t now = before | (value & kDriverStatusBits); // a driver clears none (2.1.1)
    const bool newly_agreed = (now & ~before & kStatusFeaturesOk) != 0;
    const bool agreeable = (driver_features_ & ~offered()) == 0 && has(kFeatureVersion1);
    if (newly_agreed && !agreeable) now &= ~kStatusFeaturesOk;
    if ((now & kStatusFeaturesOk) == 0) now &= ~kStatusDriverOk;
    status_.store(now);
    if ((now & ~before & kStatusDriverOk) != 0) activate();
}

void MmioTransport::activate() {
    const BriefHold hold(worker_, Worker::kRegisters);
    for (size_t i = 0; i < registers_.size(); ++i) {
        if (!registers_[i].ready) continue;
        auto queue = Queue::open(memory_, registers_[i].layout, driver_features_, {});
        if (!queue) return fail();
        queues_[i].emplace(std::move(*queue));
    }
    user_.activated();
}

void MmioTransport::reset() {
    const BriefHold hold(worker_, Worker::kRegisters);
    for (size_t i = 0; i < registers_.size(); ++i) {
        registers_[i] = {registers_[i].limit, false, {}, {}};
        queues_[i].reset();
    }
    driver_features_ = 0;
    device_features_select_ = driver_features_select_ = queue_select_ = 0;
    interrupt_status_.store(0);
    user_.was_reset();
    status_.store(0);
}

MmioTransport::QueueRegisters* MmioTransport::selected() {
    return queue_select_ < registers_.size() ? &registers_[queue_select_] : nullptr;
}
const MmioTransport::QueueRegisters* MmioTransport::selected() const {
    return queue_select_ < registers_.size() ? &registers_[queue_select_] : nullptr;
}

void MmioTransport::notify(uint32_t queue) {
    const uint64_t one = 1;
    if (queue < kicks_.size() && kicks_[queue])
        static_cast<void>(::write(kicks_[queue].get(), &one, sizeof one));
}

void MmioTransport::clear_kick(size_t queue) const {
    uint64_t count = 0;
    static_cast<void>(::read(kicks_[queue].get(), &count, sizeof count));
}

void MmioTransport::signal_used(Queue& queue) {
    if (!queue.needs_interrupt()) return;
    interrupt_status_.fetch_or(kInterruptUsed);
    interrupt_.raise();
}

void MmioTransport::signal_config() {
    config_generation_.fetch_add(1);
    if ((status_.load() & kStatusDriverOk) == 0) return;
    interrupt_status_.fetch_or(kInterruptConfig);
    interrupt_.raise();
}

void MmioTransport::fail() {
    for (size_t i = 0; i < queues_.size(); ++i) {
        if (queues_[i]) registers_[i].position = queues_[i]->position();
        queues_[i].reset();
    }
    status_.fetch_or(kStatusNeedsReset);
    signal_config(); // 2.1.2: the driver is told by a configuration change
}

void MmioTransport::raise_again() {
    if (interrupt_status_.load() != 0) interrupt_.raise();
}

} // namespace liveupdate::vmm::virtio
