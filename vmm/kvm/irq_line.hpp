// A device's interrupt into the in-kernel interrupt controllers.
#pragma once

#include <unistd.h>

#include "handoff/base/unique_fd.hpp"
#include "vmm/devices/interrupt_line.hpp"
#include "vmm/devices/virtio/edge_interrupt.hpp"
#include "vmm/kvm/vm.hpp"

namespace liveupdate::vmm {

class KvmIrqLine final : public InterruptLine {
public:
    KvmIrqLine(const Vm& vm, uint32_t gsi) : vm_(vm), gsi_(gsi) {}
    // KVM refuses only a GSI that does not exist, which the machine's fixed wiring excludes.
    void set(bool level) override { static_cast<void>(vm_.set_irq(gsi_, level)); }

private:
    const Vm& vm_;
    uint32_t gsi_;
};

// Edges by way of an eventfd that KVM waits for (Vm::add_irqfd).
class KvmEdge final : public virtio::EdgeInterrupt {
public:
    explicit KvmEdge(UniqueFd event) : event_(std::move(event)) {}
    int fd() const { return event_.get(); }
    void raise() override {
        const uint64_t one = 1;
        static_cast<void>(::write(event_.get(), &one, sizeof one));
    }

private:
    UniqueFd event_;
};

} // namespace liveupdate::vmm
