// ACPI's fixed hardware (ACPI 6.4, section 4.8): power button, soft-off and the PM timer.
//
//     port    register
//     0x600   PM1a status: PWRBTN_STS, cleared by writing 1
//     0x602   PM1a enable
//     0x604   PM1a control: SCI_EN is always 1, there is no other mode; SLP_TYP and SLP_EN
//     0x608   PM timer: 32 bits at 3.579545 MHz, read-only
//
// The SCI is level-triggered and high while an enabled status bit is set. The timer counts the host's
// monotonic time, so it neither stops nor jumps when the guest goes to another process.
//
// Left out: TMR_STS and its interrupt when the timer's highest bit changes (Linux and Windows count it by
// reading often), the sleeping states S1 to S4, GPEs, the global lock's release by firmware. Their enable
// bits can be set, as an operating system checks that, and nothing comes of it.
#pragma once

#include <mutex>

#include "vmm/devices/device.hpp"
#include "vmm/devices/host_clock.hpp"
#include "vmm/devices/interrupt_line.hpp"
#include "vmm/devices/machine_control.hpp"
#include "vmm/devices/pio_bus.hpp"

namespace liveupdate::vmm {

class AcpiPm final : public Device, public PioDevice {
public:
    static constexpr uint16_t kPort = 0x600;
    static constexpr uint32_t kPorts = 12;
    static constexpr uint16_t kEventPort = kPort;
    static constexpr uint16_t kControlPort = kPort + 4;
    static constexpr uint16_t kTimerPort = kPort + 8;
    static constexpr uint8_t kSoftOffType = 5; // SLP_TYP of \_S5
    static constexpr uint64_t kTimerHz = 3'579'545;

    // The timer starts at 0. All must outlive the device.
    AcpiPm(InterruptLine& sci, MachineControl& machine, const HostClock& clock);

    std::string_view name() const override { return "acpi-pm"; }
    StateDeclaration state() const override;
    Result<std::string> save() const override;
    Result<void> load(std::string_view bytes, uint32_t version) override;

    uint32_t read(uint16_t offset, unsigned size) override;
    void write(uint16_t offset, unsigned size, uint32_t value) override;

    // Any thread. False, and nothing has happened, when the guest has not enabled the button's event: it
    // would not notice.
    bool press_power_button();
    // The host's clock has gone on by so much while the guest had no time: the timer stands where it stood.
    void move_clock(uint64_t ns);

private:
    // All of these with mutex_ held.
    uint32_t timer() const;
    uint8_t read_byte(uint16_t offset, uint32_t timer) const;
    bool write_byte(uint16_t offset, uint8_t value); // true: the guest switches itself off
    void update_sci();

    InterruptLine& sci_;
    MachineControl& machine_;
    const HostClock& clock_;

    mutable std::mutex mutex_;
    uint16_t status_ = 0;
    uint16_t enable_ = 0;
    uint16_t control_ = 0; // without SCI_EN
    uint64_t timer_zero_ns_;
};

} // namespace liveupdate::vmm
