// The registers of virtio over MMIO, version 2 (virtio 1.2, section 4.2.2), and the queues behind them.
//
// Registers may be touched by several vCPUs at once; queues belong to the device's worker while it works.
// What changes them (DRIVER_OK, a reset, QueueReady) holds the worker for that moment.
#pragma once

#include <atomic>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "handoff/base/unique_fd.hpp"
#include "vmm/devices/mmio_bus.hpp"
#include "vmm/devices/virtio/edge_interrupt.hpp"
#include "vmm/devices/virtio/queue.hpp"
#include "vmm/devices/virtio/transport.pb.h"
#include "vmm/devices/virtio/worker.hpp"

namespace liveupdate::vmm::virtio {

// Device status, 2.1.
inline constexpr uint32_t kStatusAcknowledge = 1;
inline constexpr uint32_t kStatusDriver = 2;
inline constexpr uint32_t kStatusDriverOk = 4;
inline constexpr uint32_t kStatusFeaturesOk = 8;
inline constexpr uint32_t kStatusNeedsReset = 64;
inline constexpr uint32_t kStatusFailed = 128;

inline constexpr uint64_t kQueueNotify = 0x050; // the register's offset

// What the registers need of the device behind them.
class TransportUser {
public:
    virtual ~TransportUser() = default;
    // These three never change while the device exists.
    virtual uint32_t device_id() const = 0;
    virtual uint64_t device_features() const = 0; // beside kRingFeatures, which every device of ours has
    virtual std::vector<uint16_t> queue_limits() const = 0; // the largest size of each queue, by its number

    // Configuration space; any offset and size, what is not there reads 0. Any thread.
    virtual void read_config(uint64_t offset, std::span<uint8_t> into) const = 0;
    virtual void write_config(uint64_t offset, std::span<const uint8_t> from) = 0;

    // vCPU thread, worker on hold: the driver is ready, the queues are live.
    virtual void activated() = 0;
    // vCPU thread, worker on hold: the queues are dead; what is in flight completes nowhere.
    virtual void was_reset() = 0;
    // vCPU thread, at every access to a register and after was_reset(), worker not on hold for registers:
    // waits until nothing of before the last reset can touch the guest's RAM any more, or an update wants the
    // vCPU. The wait then goes on in the next process, at the driver's next access.
    virtual void settle() = 0;
};

class MmioTransport final : public MmioDevice {
public:
    // All outlive the transport.
    MmioTransport(TransportUser& user, Worker& worker, const GuestMemory& memory, EdgeInterrupt& interrupt);

    // Makes the queues' eventfds; before that kicks go nowhere.
    Result<void> open();

    // MmioDevice.
    uint64_t read(uint64_t offset, unsigned size) override;
    void write(uint64_t offset, unsigned size, uint64_t value) override;

    // What the driver agreed to; settled while queues are live.
    uint64_t features() const { return driver_features_; }
    bool has(uint64_t feature) const { return (driver_features_ & feature) != 0; }
    size_t queue_count() const { return registers_.size(); }
    // Written when the driver kicks that queue; also by KVM itself (KVM_IOEVENTFD). Watched by the worker.
    int kick_fd(size_t queue) const { return kicks_[queue].get(); }
    void clear_kick(size_t queue) const;

    // For the worker, or whoever holds it. Null while the queue is not live.
    Queue* queue(size_t index) { return queues_[index] ? &*queues_[index] : nullptr; }
    // Tells the driver of used buffers, if it wants to know.
    void signal_used(Queue& queue);
    // The configuration space has changed.
    void signal_config();
    // The driver has broken something: no queue is live until it resets the device. For the worker.
    void fail();
    bool failed() const { return (status_.load() & kStatusNeedsReset) != 0; }
    // After a load: an interrupt that was raised just before the pause may have got lost on its way into the
    // interrupt controller's saved state (KVM's irqfd goes through a work queue for the I/O APIC's pins). One
    // too many harms nobody.
    void raise_again();

    // For the device's save() and load(). check() refuses what cannot be and applies nothing; it also opens
    // the queues, which apply() then makes live: only while no vCPU runs and the worker is on hold.
    void save(state::VirtioTransport& out) const;
    Result<std::vector<std::optional<Queue>>> check(const state::VirtioTransport& in) const;
    void apply(const state::VirtioTransport& in, std::vector<std::optional<Queue>> queues);

private:
    struct QueueRegisters {
        uint16_t limit = 0;
        bool ready = false;
        Queue::Layout layout;
        Queue::Position position; // of a queue that is not live; else the queue's own counts
    };

    uint64_t offered() const { return user_.device_features() | kRingFeatures; }
    uint32_t read_register(uint64_t offset);
    uint32_t read_queue_register(uint64_t offset) const;
    void write_register(uint64_t offset, uint32_t value);
    void write_queue_register(uint64_t offset, uint32_t value);
    void write_features(uint32_t value);
    void write_status(uint32_t value);
    void write_ready(QueueRegisters& queue, uint32_t value);
    void notify(uint32_t queue);
    void activate();
    void reset();
    QueueRegisters* selected();
    const QueueRegisters* selected() const;

    TransportUser& user_;
    Worker& worker_;
    const GuestMemory& memory_;
    EdgeInterrupt& interrupt_;
    std::vector<UniqueFd> kicks_;

    mutable std::mutex mutex_; // of the registers; never taken by the worker
    std::vector<QueueRegisters> registers_;
    uint64_t driver_features_ = 0;
    uint32_t device_features_select_ = 0;
    uint32_t driver_features_select_ = 0;
    uint32_t queue_select_ = 0;
    std::atomic<uint32_t> status_{0};
    std::atomic<uint32_t> interrupt_status_{0};
    std::atomic<uint32_t> config_generation_{0};

    std::vector<std::optional<Queue>> queues_; // the worker's
};

} // namespace liveupdate::vmm::virtio
