// The real-time clock of a PC, a Motorola MC146818 with 128 bytes (its data sheet, "Address map"):
//
//     port    register
//     0x70    index, write-only; bit 7 masks NMIs on a PC and is passed over here
//     0x71    the indexed byte:
//               0, 2, 4, 6 to 9   second, minute, hour, day of week, day, month, year; 0x32 century
//               1, 3, 5           alarm
//               A                 divider and rate; bit 7 UIP: the time changes within 244 us
//               B                 bit 7 SET stops the clock, bit 2 binary, bit 1 24 hours
//               C, D              0; 0x80: the battery is good
//               the rest          memory
//
// The time is the host's CLOCK_REALTIME, in UTC, plus what the guest has set it apart by; nothing ticks. Left
// out: all interrupts (IRQ 8 stays low and register C 0), daylight saving, square wave, and a rate other than
// one second a second. The memory is as it was at the start, all zero, each time a machine is made.
#pragma once

#include <array>
#include <mutex>

#include "vmm/devices/device.hpp"
#include "vmm/devices/host_clock.hpp"
#include "vmm/devices/pio_bus.hpp"

namespace liveupdate::vmm {

class Rtc final : public Device, public PioDevice {
public:
    static constexpr uint16_t kPort = 0x70;
    static constexpr uint32_t kPorts = 2;
    static constexpr uint8_t kIrq = 8;
    static constexpr uint8_t kCentury = 0x32; // as the FADT tells

    // `clock` must outlive the device.
    explicit Rtc(const HostClock& clock) : clock_(clock) {}

    std::string_view name() const override { return "rtc"; }
    StateDeclaration state() const override;
    Result<std::string> save() const override;
    Result<void> load(std::string_view bytes, uint32_t version) override;

    uint32_t read(uint16_t offset, unsigned size) override;
    void write(uint16_t offset, unsigned size, uint32_t value) override;

private:
    static constexpr size_t kBytes = 128;

    // Seconds since 1970 and the rest. Signed: a guest may set its clock to any year.
    struct Time {
        int64_t seconds = 0;
        uint32_t ns = 0;
    };

    // All of these with mutex_ held.
    bool stopped() const;
    Time host_time() const;
    Time now() const;
    void set_time(Time time);
    void write_control(uint8_t& control, uint8_t value);
    uint8_t read_indexed() const;
    void write_indexed(uint8_t value);
    void store_time(std::array<uint8_t, kBytes>& bytes, Time time) const;
    int64_t stored_seconds() const;
    uint8_t encode(unsigned number) const;
    unsigned decode(uint8_t byte) const;
    uint8_t encode_hour(unsigned hour) const;
    unsigned decode_hour(uint8_t byte) const;

    const HostClock& clock_;

    mutable std::mutex mutex_;
    uint8_t index_ = 0;
    uint8_t control_a_ = 0x26; // 32768 Hz, 1024 interrupts a second
    uint8_t control_b_ = 0x02; // BCD, 24 hours
    Time offset_;
    std::array<uint8_t, kBytes> memory_{};
};

} // namespace liveupdate::vmm
