// A device's interrupt line into the in-kernel interrupt controllers.
#pragma once

#include "vmm/devices/interrupt_line.hpp"
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

} // namespace liveupdate::vmm
