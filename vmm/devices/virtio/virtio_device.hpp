// What every virtio device is to the machine. To add one: derive from VirtioDevice, say in the five functions
// of TransportUser what the device is, work in the four of WorkerClient, and save the transport's registers
// as the first field of the device's own message.
//
// A device's life, in a machine that is to run:
//
//     constructed ──► open() ──► [load()] ──► unhold() ──► works ⇄ hold(), await_held() ... unhold()
//
// A machine for a rehearsal is never opened: its devices load and save state, and touch neither back end nor
// guest RAM.
#pragma once

#include <sys/epoll.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "vmm/boot/memory_map.hpp"
#include "vmm/devices/device.hpp"
#include "vmm/devices/virtio/mmio_transport.hpp"
#include "vmm/devices/virtio/worker.hpp"

namespace liveupdate::vmm::virtio {

class VirtioDevice : public Device, protected TransportUser, protected WorkerClient {
public:
    // What the machine gives a device; all outlive it.
    struct Place {
        const GuestMemory& memory;
        EdgeInterrupt& interrupt;
    };

    // Makes descriptors and the worker's thread, which stays on hold. Once, before load().
    Result<void> open() {
        TRY(open_without_thread());
        worker_.start(std::string(name()));
        return {};
    }
    // The same without a thread: whoever calls it works by round().
    Result<void> open_without_thread() {
        TRY(worker_.open());
        TRY(transport_->open());
        for (size_t i = 0; i < transport_->queue_count(); ++i)
            TRY(worker_.watch(transport_->kick_fd(i), kKickEvents, kFirstQueueToken + i));
        return open_back_end();
    }
    // What a worker's round is after a hold. Only for a device without a thread, not on hold.
    void round() {
        look();
        finish_round();
    }

    MmioTransport& transport() { return *transport_; }

    // The device stands still for an update: neither rings nor guest RAM are touched by it once await_held()
    // is true. hold() never waits. What the kernel does for requests in flight goes on.
    void hold() {
        pausing_.store(true);
        worker_.hold(Worker::kUpdate);
    }
    bool await_held(Deadline deadline) const { return worker_.await_held(deadline); }
    // This process owns the guest, whose vCPUs may be running: every queue is looked at.
    void unhold() {
        pausing_.store(false);
        transport_->raise_again();
        worker_.unhold(Worker::kUpdate);
    }

    // A descriptor that only this process has and that the next one needs: "<device>-<what>". The next one
    // takes it out of this process. Session thread, while the device works; valid while the device is.
    struct CarriedFd {
        std::string name;
        int fd;
    };
    virtual std::vector<CarriedFd> carried() = 0;
    // Held for good, the guest runs elsewhere: whether the kernel has nothing left to do for this process's
    // requests, so that it may end.
    virtual bool at_rest() const = 0;

protected:
    // Tokens of queues' kicks, as ready() gets them: kFirstQueueToken + number. Back ends use others.
    static constexpr uint64_t kFirstQueueToken = uint64_t{1} << 32;
    static constexpr uint32_t kKickEvents = EPOLLIN;

    VirtioDevice() : worker_(*this) {}
    // From the constructor of the device, which can tell its queues by then.
    void attach(const Place& place) {
        memory_ = &place.memory;
        TransportUser& user = *this;
        transport_ = std::make_unique<MmioTransport>(user, worker_, place.memory, place.interrupt);
    }
    // From the destructor of the device, before anything that a round uses goes.
    void shut() { worker_.stop(); }

    virtual Result<void> open_back_end() = 0;

    const GuestMemory& memory() const { return *memory_; }
    // Between hold() and unhold(): a vCPU in a register access must leave it. Not yet so in a device that
    // waits for its guest.
    bool pausing() const { return pausing_.load(); }
    Worker& worker() { return worker_; }
    const Worker& worker() const { return worker_; }
    const MmioTransport& transport() const { return *transport_; }

private:
    const GuestMemory* memory_ = nullptr;
    std::atomic<bool> pausing_{false};
    Worker worker_;
    std::unique_ptr<MmioTransport> transport_;
};

} // namespace liveupdate::vmm::virtio
