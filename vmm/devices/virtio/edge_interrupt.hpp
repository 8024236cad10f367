// A device's edge-triggered interrupt.
#pragma once

namespace liveupdate::vmm::virtio {

class EdgeInterrupt {
public:
    EdgeInterrupt() = default;
    EdgeInterrupt(const EdgeInterrupt&) = delete;
    EdgeInterrupt& operator=(const EdgeInterrupt&) = delete;
    virtual ~EdgeInterrupt() = default;

    // One edge. From the device's worker and from vCPU threads; neither blocks nor calls back.
    virtual void raise() = 0;
};

// Of a machine that never runs.
class NoInterrupt final : public EdgeInterrupt {
public:
    void raise() override {}
};

} // namespace liveupdate::vmm::virtio
