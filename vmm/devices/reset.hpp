// The two ways in which PC software resets the machine.
#pragma once

#include <mutex>

#include "vmm/devices/device.hpp"
#include "vmm/devices/machine_control.hpp"
#include "vmm/devices/pio_bus.hpp"

namespace liveupdate::vmm {

// Port 0x64 of the keyboard controller, as far as a reset needs it: its status always says that a command is
// welcome (input buffer empty) and that no key waits, and command 0xFE pulses the CPU's reset line (IBM PC/AT
// Technical Reference, "8042 commands"). There is no keyboard: every other command is swallowed.
class KeyboardResetPort final : public StatelessDevice, public PioDevice {
public:
    static constexpr uint16_t kPort = 0x64;
    static constexpr uint32_t kPorts = 1;

    // `machine` must outlive the device.
    explicit KeyboardResetPort(MachineControl& machine) : machine_(machine) {}

    std::string_view name() const override { return "keyboard-reset"; }
    std::string_view why_stateless() const override {
        return "the status never changes and a reset pulse leaves nothing behind";
    }

    uint32_t read(uint16_t offset, unsigned size) override;
    void write(uint16_t offset, unsigned size, uint32_t value) override;

private:
    MachineControl& machine_;
};

// The reset control register at port 0xCF9 (Intel I/O Controller Hub data sheet, "RST_CNT"): bit 1 chooses a
// hard reset, bit 3 a full one with power cycle, and bit 2 going from 0 to 1 starts it. Software commonly
// writes the kind first and the kind with bit 2 next. For this machine all kinds are the same reset.
class ResetControl final : public Device, public PioDevice {
public:
    static constexpr uint16_t kPort = 0xCF9;
    static constexpr uint32_t kPorts = 1;
    static constexpr uint8_t kResetValue = 0x06; // a hard reset, at once: what ACPI's FADT names

    // `machine` must outlive the device.
    explicit ResetControl(MachineControl& machine) : machine_(machine) {}

    std::string_view name() const override { return "reset-control"; }
    StateDeclaration state() const override;
    Result<std::string> save() const override;
    Result<void> load(std::string_view bytes, uint32_t version) override;

    uint32_t read(uint16_t offset, unsigned size) override;
    void write(uint16_t offset, unsigned size, uint32_t value) override;

private:
    MachineControl& machine_;
    mutable std::mutex mutex_;
    uint8_t value_ = 0;
};

} // namespace liveupdate::vmm
