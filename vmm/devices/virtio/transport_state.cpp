// Saving and loading of the registers and queues of virtio over MMIO.
#include <bit>
#include <string>

#include "vmm/devices/state_message.hpp"
#include "vmm/devices/virtio/mmio_transport.hpp"

namespace liveupdate::vmm::virtio {
namespace {

constexpr uint32_t kStatusBits = kStatusAcknowledge | kStatusDriver | kStatusDriverOk | kStatusFeaturesOk |
                                 kStatusNeedsReset | kStatusFailed;

Result<void> check_queue(const state::VirtioQueue& in, uint16_t limit) {
    TRY(check_at_most("size", in.size(), limit));
    if (in.size() != 0 && !std::has_single_bit(in.size()))
        return Error(ErrorCode::kRefused, "field \"size\" is not a power of two");
    if (in.ready() && in.size() == 0)
        return Error(ErrorCode::kRefused, "field \"ready\" is set in a queue without a size");
    TRY(check_at_most("next_available", in.next_available(), UINT16_MAX));
    TRY(check_at_most("next_used", in.next_used(), UINT16_MAX));
    return check_at_most("signalled_used", in.signalled_used(), UINT16_MAX);
}

Queue::Layout layout_of(const state::VirtioQueue& in) {
    return {static_cast<uint16_t>(in.size()), in.descriptors(), in.available(), in.used()};
}

Queue::Position position_of(const state::VirtioQueue& in) {
    return {static_cast<uint16_t>(in.next_available()), static_cast<uint16_t>(in.next_used()),
        static_cast<uint16_t>(in.signalled_used())};
}

Error refused(const std::string& why) {
    return {ErrorCode::kRefused, why};
}

} // namespace

void MmioTransport::save(state::VirtioTransport& out) const {
    const std::lock_guard lock(mutex_);
    out.set_status(status_.load());
    out.set_driver_features(driver_features_);
    out.set_device_features_select(device_features_select_);
    out.set_driver_features_select(driver_features_select_);
    out.set_queue_select(queue_select_);
    out.set_interrupt_status(interrupt_status_.load());
    out.set_config_generation(config_generation_.load());
    for (size_t i = 0; i < registers_.size(); ++i) {
        const QueueRegisters& from = registers_[i];
        const Queue::Position position = queues_[i] ? queues_[i]->position() : from.position;
        state::VirtioQueue& queue = *out.add_queues();
        queue.set_size(from.layout.size);
        queue.set_ready(from.ready);
        queue.set_descriptors(from.layout.descriptors);
        queue.set_available(from.layout.available);
        queue.set_used(from.layout.used);
        queue.set_next_available(position.next_available);
        queue.set_next_used(position.next_used);
        queue.set_signalled_used(position.signalled_used);
    }
}

Result<std::vector<std::optional<Queue>>> MmioTransport::check(const state::VirtioTransport& in) const {
    TRY(check_bits("status", in.status(), kStatusBits));
    TRY(check_bits("interrupt_status", in.interrupt_status(), 3));
    const bool ready = (in.status() & kStatusDriverOk) != 0;
    const bool agreed = (in.status() & kStatusFeaturesOk) != 0;
    if (ready && !agreed) return refused("field \"status\" has a driver that is ready and agreed to nothing");
    if (agreed && (in.driver_features() & ~offered()) != 0)
        return refused("field \"driver_features\" has features that this build does not offer");
    if (agreed && (in.driver_features() & kFeatureVersion1) == 0)
        return refused("field \"driver_features\" lacks VIRTIO_F_VERSION_1");
    if (static_cast<size_t>(in.queues_size()) != registers_.size())
        return refused("field \"queues\" has " + std::to_string(in.queues_size()) +
                       " queues, this device has " + std::to_string(registers_.size()));
    const bool live = ready && (in.status() & kStatusNeedsReset) == 0;
    std::vector<std::optional<Queue>> queues(registers_.size());
    for (size_t i = 0; i < queues.size(); ++i) {
        const state::VirtioQueue& queue = in.queues(static_cast<int>(i));
        const std::string where = "field \"queues\", number " + std::to_string(i);
        TRY(check_queue(queue, registers_[i].limit).context(where));
        if (!live || !queue.ready()) continue;
        auto opened = Queue::open(memory_, layout_of(queue), in.driver_features(), position_of(queue));
        if (!opened) return std::move(opened).error().context(where);
        queues[i].emplace(std::move(*opened));
    }
    return queues;
}

void MmioTransport::apply(const state::VirtioTransport& in, std::vector<std::optional<Queue>> queues) {
    const std::lock_guard lock(mutex_);
    status_.store(in.status());
    driver_features_ = in.driver_features();
    device_features_select_ = in.device_features_select();
    driver_features_select_ = in.driver_features_select();
    queue_select_ = in.queue_select();
    interrupt_status_.store(in.interrupt_status());
    config_generation_.store(in.config_generation());
    for (size_t i = 0; i < registers_.size(); ++i) {
        const state::VirtioQueue& queue = in.queues(static_cast<int>(i));
        registers_[i] = {registers_[i].limit, queue.ready(), layout_of(queue), position_of(queue)};
    }
    queues_ = std::move(queues);
}

} // namespace liveupdate::vmm::virtio
