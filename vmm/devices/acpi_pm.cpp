#include "vmm/devices/acpi_pm.hpp"

#include "vmm/devices/acpi_pm.pb.h"
#include "vmm/devices/state_message.hpp"

namespace liveupdate::vmm {
namespace {

// Offsets of the registers' bytes.
constexpr uint16_t kStatus = 0, kEnable = 2, kControl = 4, kTimer = 8;

// PM1 status and enable have the same bits.
constexpr uint16_t kTimerEvent = 1 << 0, kGlobalLock = 1 << 5, kPowerButton = 1 << 8, kRtc = 1 << 10;
constexpr uint16_t kStatusBits = kPowerButton;
constexpr uint16_t kEnableBits = kTimerEvent | kGlobalLock | kPowerButton | kRtc;

constexpr uint16_t kSciEnabled = 1 << 0;
constexpr uint16_t kBusMasterReload = 1 << 1;
constexpr unsigned kSleepTypeShift = 10;
constexpr uint16_t kSleepType = 7 << kSleepTypeShift;
constexpr uint16_t kSleepEnable = 1 << 13; // reads as 0
constexpr uint16_t kControlBits = kBusMasterReload | kSleepType;

const StateSchema& schema() {
    static const StateSchema kSchema{"acpi-pm", 1, 1};
    return kSchema;
}

uint8_t byte_of(uint32_t value, unsigned index) {
    return static_cast<uint8_t>(value >> (8 * index));
}

// `value` in the place of byte `index` of `old`.
uint16_t with_byte(uint16_t old, unsigned index, uint8_t value) {
    return static_cast<uint16_t>((old & ~(0xFF << (8 * index))) | value << (8 * index));
}

} // namespace

AcpiPm::AcpiPm(InterruptLine& sci, MachineControl& machine, const HostClock& clock)
    : sci_(sci), machine_(machine), clock_(clock), timer_zero_ns_(clock.monotonic_ns()) {}

StateDeclaration AcpiPm::state() const {
    return schema();
}

Result<std::string> AcpiPm::save() const {
    state::AcpiPm message;
    {
        const std::lock_guard lock(mutex_);
        message.set_status(status_);
        message.set_enable(enable_);
        message.set_control(control_);
        message.set_timer_zero_ns(timer_zero_ns_);
    }
    return serialise_state(message);
}

Result<void> AcpiPm::load(std::string_view bytes, uint32_t version) {
    state::AcpiPm message;
    TRY(parse_state(message, bytes, version, schema()));
    TRY(check_bits("status", message.status(), kStatusBits).context("state of acpi-pm"));
    TRY(check_bits("enable", message.enable(), kEnableBits).context("state of acpi-pm"));
    TRY(check_bits("control", message.control(), kControlBits).context("state of acpi-pm"));
    const std::lock_guard lock(mutex_);
    status_ = static_cast<uint16_t>(message.status());
    enable_ = static_cast<uint16_t>(message.enable());
    control_ = static_cast<uint16_t>(message.control());
    timer_zero_ns_ = message.timer_zero_ns();
    update_sci();
    return {};
}

uint32_t AcpiPm::timer() const {
    constexpr uint64_t kSecond = 1'000'000'000;
    const uint64_t elapsed = clock_.monotonic_ns() - timer_zero_ns_;
    // In two steps, which cannot overflow; the counter itself has 32 bits and wraps every 20 minutes.
    return static_cast<uint32_t>(elapsed / kSecond * kTimerHz + elapsed % kSecond * kTimerHz / kSecond);
}

uint32_t AcpiPm::read(uint16_t offset, unsigned size) {
    const std::lock_guard lock(mutex_);
    const uint32_t now = timer();
    uint32_t value = 0;
    for (unsigned i = 0; i < size; ++i)
        value |= uint32_t{read_byte(static_cast<uint16_t>(offset + i), now)} << (8 * i);
    return value;
}

uint8_t AcpiPm::read_byte(uint16_t offset, uint32_t timer) const {
    if (offset >= kTimer) return byte_of(timer, offset - kTimer);
    switch (offset & ~1) {
    case kStatus:
        return byte_of(status_, offset - kStatus);
    case kEnable:
        return byte_of(enable_, offset - kEnable);
    case kControl:
        return byte_of(control_ | kSciEnabled, offset - kControl);
    default:
        return 0;
    }
}

void AcpiPm::write(uint16_t offset, unsigned size, uint32_t value) {
    bool off = false;
    {
        const std::lock_guard lock(mutex_);
        for (unsigned i = 0; i < size; ++i)
            off |= write_byte(static_cast<uint16_t>(offset + i), byte_of(value, i));
        update_sci();
    }
    if (off) machine_.request_power_off();
}

bool AcpiPm::write_byte(uint16_t offset, uint8_t value) {
    const unsigned index = offset & 1;
    switch (offset & ~1) {
    case kStatus:
        status_ &= static_cast<uint16_t>(~with_byte(0, index, value));
        return false;
    case kEnable:
        enable_ = with_byte(enable_, index, value) & kEnableBits;
        return false;
    case kControl: {
        const uint16_t written = with_byte(0, index, value);
        control_ = with_byte(control_, index, value) & kControlBits;
        return (written & kSleepEnable) != 0 && (written & kSleepType) >> kSleepTypeShift == kSoftOffType;
    }
    default:
        return false; // the timer
    }
}

void AcpiPm::update_sci() {
    sci_.set((status_ & enable_) != 0);
}

void AcpiPm::move_clock(uint64_t ns) {
    const std::lock_guard lock(mutex_);
    timer_zero_ns_ += ns;
}

bool AcpiPm::press_power_button() {
    const std::lock_guard lock(mutex_);
    if ((enable_ & kPowerButton) == 0) return false;
    status_ |= kPowerButton;
    update_sci();
    return true;
}

} // namespace liveupdate::vmm
