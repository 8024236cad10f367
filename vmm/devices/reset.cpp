#include "vmm/devices/reset.hpp"

#include "vmm/devices/reset.pb.h"
#include "vmm/devices/state_message.hpp"

namespace liveupdate::vmm {
namespace {

constexpr uint8_t kStatusSystemFlag = 0x04; // the power-on self-test has passed
constexpr uint8_t kCommandPulseReset = 0xFE;

constexpr uint8_t kResetCpu = 0x04;
constexpr uint8_t kWritableBits = 0x0E;

const StateSchema& schema() {
    static const StateSchema kSchema{"reset-control", 1, 1};
    return kSchema;
}

} // namespace

uint32_t KeyboardResetPort::read(uint16_t /*offset*/, unsigned /*size*/) {
    return kStatusSystemFlag;
}

void KeyboardResetPort::write(uint16_t /*offset*/, unsigned /*size*/, uint32_t value) {
    if (value == kCommandPulseReset) machine_.request_reset();
}

StateDeclaration ResetControl::state() const {
    return schema();
}

Result<std::string> ResetControl::save() const {
    state::ResetControl message;
    {
        const std::lock_guard lock(mutex_);
        message.set_value(value_);
    }
    return serialise_state(message);
}

Result<void> ResetControl::load(std::string_view bytes, uint32_t version) {
    state::ResetControl message;
    TRY(parse_state(message, bytes, version, schema()));
    TRY(check_bits("value", message.value(), kWritableBits).context("state of reset-control"));
    const std::lock_guard lock(mutex_);
    value_ = static_cast<uint8_t>(message.value());
    return {};
}

uint32_t ResetControl::read(uint16_t /*offset*/, unsigned /*size*/) {
    const std::lock_guard lock(mutex_);
    return value_;
}

void ResetControl::write(uint16_t /*offset*/, unsigned /*size*/, uint32_t value) {
    bool starts = false;
    {
        const std::lock_guard lock(mutex_);
        starts = (value & kResetCpu) != 0 && (value_ & kResetCpu) == 0;
        value_ = static_cast<uint8_t>(value & kWritableBits);
    }
    if (starts) machine_.request_reset();
}

} // namespace liveupdate::vmm
