// The guest's way to end its VM with a status, as QEMU's isa-debug-exit: a write of v to the port ends the
// machine with status (v << 1) | 1, so that a guest cannot claim the status 0 of an orderly end.
#pragma once

#include "vmm/devices/device.hpp"
#include "vmm/devices/machine_control.hpp"
#include "vmm/devices/pio_bus.hpp"

namespace liveupdate::vmm {

class DebugExit final : public StatelessDevice, public PioDevice {
public:
    static constexpr uint16_t kPort = 0xF4;
    static constexpr uint32_t kPorts = 4;

    // `machine` must outlive the device.
    explicit DebugExit(MachineControl& machine) : machine_(machine) {}

    std::string_view name() const override { return "debug-exit"; }
    std::string_view why_stateless() const override {
        return "a write ends the machine at once and nothing is remembered";
    }

    // Reads give 0, as in QEMU.
    uint32_t read(uint16_t offset, unsigned size) override;
    // Only a write at the first port counts; it may have any size.
    void write(uint16_t offset, unsigned size, uint32_t value) override;

private:
    MachineControl& machine_;
};

} // namespace liveupdate::vmm
