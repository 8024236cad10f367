// One input of the interrupt controller, as a device sees it.
#pragma once

namespace liveupdate::vmm {

class InterruptLine {
public:
    InterruptLine() = default;
    InterruptLine(const InterruptLine&) = delete;
    InterruptLine& operator=(const InterruptLine&) = delete;
    virtual ~InterruptLine() = default;

    // Drives the line; driving it to the level it has changes nothing. Called by vCPU threads and by the
    // console's loop with the device's lock held, so it neither blocks nor calls back into the device.
    virtual void set(bool level) = 0;
};

} // namespace liveupdate::vmm
