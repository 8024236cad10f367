// What a device may ask of the machine as a whole.
#pragma once

#include <cstdint>

namespace liveupdate::vmm {

// Called from vCPU threads, inside the exit of the instruction that asked. All only take a note and return;
// the machine acts once the vCPU is back in its loop. A request that was noted is acted upon, or carried
// across, before device state is saved: no device repeats it.
class MachineControl {
public:
    MachineControl() = default;
    MachineControl(const MachineControl&) = delete;
    MachineControl& operator=(const MachineControl&) = delete;
    virtual ~MachineControl() = default;

    // The guest is done; `status` is the exit status in the sense of QEMU's isa-debug-exit.
    virtual void request_exit(uint32_t status) = 0;
    // The guest has shut down in order and switches itself off.
    virtual void request_power_off() = 0;
    // The guest wants to start over from its reset vector or kernel.
    virtual void request_reset() = 0;
};

} // namespace liveupdate::vmm
