#include "vmm/devices/rtc.hpp"

#include <algorithm>
#include <chrono>

#include "vmm/devices/rtc.pb.h"
#include "vmm/devices/state_message.hpp"

namespace liveupdate::vmm {
namespace {

// Indices of bytes.
constexpr uint8_t kSecond = 0, kMinute = 2, kHour = 4, kWeekday = 6, kDay = 7, kMonth = 8, kYear = 9,
                  kControlA = 0xA, kControlB = 0xB, kControlC = 0xC, kControlD = 0xD;
constexpr std::array kTimeBytes = {kSecond, kMinute, kHour, kWeekday, kDay, kMonth, kYear, Rtc::kCentury};

constexpr uint8_t kUpdateInProgress = 0x80;                     // of A
constexpr uint8_t kDividerReset = 0x60;                         // of A: both bits set hold the divider at 0
constexpr uint8_t kSet = 0x80, kBinary = 0x04, kHours24 = 0x02; // of B
constexpr uint8_t kAfternoon = 0x80;                            // of the hour, when there are 12
constexpr uint8_t kBatteryGood = 0x80;                          // of D
constexpr uint8_t kIndexBits = 0x7F;

constexpr uint32_t kNsPerSecond = 1'000'000'000;
constexpr uint32_t kUpdateWarningNs = 244'000; // t_BUC of the data sheet
// The first update comes half a second after the divider is let go ("Register A", DV2 to DV0).
constexpr uint32_t kAfterDividerResetNs = kNsPerSecond / 2;
constexpr int64_t kMostOffset = int64_t{1} << 38; // seconds, some 8700 years

const StateSchema& schema() {
    static const StateSchema kSchema{"rtc", 1, 1};
    return kSchema;
}

bool is_time(uint8_t index) {
    return std::find(kTimeBytes.begin(), kTimeBytes.end(), index) != kTimeBytes.end();
}

Result<void> check_offset(int64_t seconds) {
    if (seconds >= -kMostOffset && seconds <= kMostOffset) return {};
    return Error(ErrorCode::kRefused,
        "field \"offset_seconds\" is " + std::to_string(seconds) + ", which is more than 8700 years");
}

Result<void> check_message(const state::Rtc& message) {
    TRY(check_bits("index", message.index(), kIndexBits));
    TRY(check_bits("control_a", message.control_a(), 0xFF & ~kUpdateInProgress));
    TRY(check_at_most("control_b", message.control_b(), 0xFF));
    TRY(check_offset(message.offset_seconds()));
    return check_at_most("offset_ns", message.offset_ns(), kNsPerSecond - 1);
}

} // namespace

StateDeclaration Rtc::state() const {
    return schema();
}

Result<std::string> Rtc::save() const {
    state::Rtc message;
    {
        const std::lock_guard lock(mutex_);
        message.set_index(index_);
        message.set_control_a(control_a_);
        message.set_control_b(control_b_);
        message.set_offset_seconds(offset_.seconds);
        message.set_offset_ns(offset_.ns);
        message.set_memory(memory_.data(), memory_.size());
    }
    return serialise_state(message);
}

Result<void> Rtc::load(std::string_view bytes, uint32_t version) {
    state::Rtc message;
    TRY(parse_state(message, bytes, version, schema()));
    TRY(check_message(message).context("state of rtc"));
    if (message.memory().size() != kBytes)
        return Error(ErrorCode::kRefused, "state of rtc: field \"memory\" has " +
                                              std::to_string(message.memory().size()) + " bytes, not 128");
    const std::lock_guard lock(mutex_);
    index_ = static_cast<uint8_t>(message.index());
    control_a_ = static_cast<uint8_t>(message.control_a());
    control_b_ = static_cast<uint8_t>(message.control_b());
    offset_ = {message.offset_seconds(), message.offset_ns()};
    std::copy(message.memory().begin(), message.memory().end(), memory_.begin());
    return {};
}

uint32_t Rtc::read(uint16_t offset, unsigned size) {
    const std::lock_guard lock(mutex_);
    uint32_t value = 0;
    for (unsigned i = 0; i < size; ++i) {
        const uint8_t byte = offset + i == 0 ? uint8_t{0xFF} : read_indexed();
        value |= uint32_t{byte} << (8 * i);
    }
    return value;
}

void Rtc::write(uint16_t offset, unsigned size, uint32_t value) {
    const std::lock_guard lock(mutex_);
    for (unsigned i = 0; i < size; ++i) {
        const auto byte = static_cast<uint8_t>(value >> (8 * i));
        if (offset + i == 0)
            index_ = byte & kIndexBits;
        else
            write_indexed(byte);
    }
}

uint8_t Rtc::read_indexed() const {
    switch (index_) {
    case kControlA: {
        const bool changes_soon = !stopped() && now().ns >= kNsPerSecond - kUpdateWarningNs;
        return changes_soon ? control_a_ | kUpdateInProgress : control_a_;
    }
    case kControlB:
        return control_b_;
    case kControlC:
        return 0;
    case kControlD:
        return kBatteryGood;
    default:
        break;
    }
    if (!is_time(index_) || stopped()) return memory_[index_];
    auto bytes = memory_;
    store_time(bytes, now());
    return bytes[index_];
}

void Rtc::write_indexed(uint8_t value) {
    switch (index_) {
    case kControlA:
        return write_control(control_a_, value & static_cast<uint8_t>(~kUpdateInProgress));
    case kControlB:
        return write_control(control_b_, value);
    case kControlC:
    case kControlD:
        return; // read-only
    default:
        break;
    }
    if (!is_time(index_) || stopped()) {
        memory_[index_] = value;
        return;
    }
    // Without stopping the clock: the other parts go on as they are.
    const uint32_t fraction = now().ns;
    store_time(memory_, now());
    memory_[index_] = value;
    set_time({stored_seconds(), fraction});
}

// Stops and starts the clock as the new value says.
void Rtc::write_control(uint8_t& control, uint8_t value) {
    const bool before = stopped();
    const bool divider_held = (control_a_ & kDividerReset) == kDividerReset;
    const Time time = now();
    if (!before) store_time(memory_, time);
    control = value;
    if (before && !stopped()) set_time({stored_seconds(), divider_held ? kAfterDividerResetNs : time.ns});
}

bool Rtc::stopped() const {
    return (control_b_ & kSet) != 0 || (control_a_ & kDividerReset) == kDividerReset;
}

Rtc::Time Rtc::host_time() const {
    const uint64_t ns = clock_.realtime_ns();
    return {static_cast<int64_t>(ns / kNsPerSecond), static_cast<uint32_t>(ns % kNsPerSecond)};
}

Rtc::Time Rtc::now() const {
    const Time host = host_time();
    const uint32_t ns = host.ns + offset_.ns;
    return {host.seconds + offset_.seconds + ns / kNsPerSecond, ns % kNsPerSecond};
}

void Rtc::set_time(Time time) {
    const Time host = host_time();
    const bool borrow = time.ns < host.ns;
    offset_.seconds = time.seconds - host.seconds - (borrow ? 1 : 0);
    offset_.ns = time.ns + (borrow ? kNsPerSecond : 0) - host.ns;
}

void Rtc::store_time(std::array<uint8_t, kBytes>& bytes, Time time) const {
    using namespace std::chrono;
    const sys_seconds at{seconds(time.seconds)};
    const auto midnight = floor<days>(at);
    const year_month_day date(midnight);
    const hh_mm_ss clock(at - midnight);
    // Four digits are all that there is; a year before 0 comes out as one after.
    const int year = ((static_cast<int>(date.year()) % 10000) + 10000) % 10000;
    bytes[kSecond] = encode(static_cast<unsigned>(clock.seconds().count()));
    bytes[kMinute] = encode(static_cast<unsigned>(clock.minutes().count()));
    bytes[kHour] = encode_hour(static_cast<unsigned>(clock.hours().count()));
    bytes[kWeekday] = encode(weekday(midnight).c_encoding() + 1); // 1 is Sunday
    bytes[kDay] = encode(static_cast<unsigned>(date.day()));
    bytes[kMonth] = encode(static_cast<unsigned>(date.month()));
    bytes[kYear] = encode(static_cast<unsigned>(year % 100));
    bytes[kCentury] = encode(static_cast<unsigned>(year / 100));
}

// Whatever the guest has written there: values beyond their range carry over, as days of a month do.
int64_t Rtc::stored_seconds() const {
    using namespace std::chrono;
    const auto year_number = static_cast<int>(decode(memory_[kCentury]) * 100 + decode(memory_[kYear]));
    const unsigned month_number = std::clamp(decode(memory_[kMonth]), 1u, 12u);
    const sys_days first = year(year_number) / month(month_number) / day(1);
    const auto at = first + days(static_cast<int>(decode(memory_[kDay])) - 1) +
                    hours(decode_hour(memory_[kHour])) + minutes(decode(memory_[kMinute])) +
                    seconds(decode(memory_[kSecond]));
    return at.time_since_epoch().count();
}

uint8_t Rtc::encode(unsigned number) const {
    if ((control_b_ & kBinary) != 0) return static_cast<uint8_t>(number);
    return static_cast<uint8_t>(number / 10 << 4 | number % 10);
}

unsigned Rtc::decode(uint8_t byte) const {
    if ((control_b_ & kBinary) != 0) return byte;
    return (byte >> 4) * 10u + (byte & 0xFu);
}

uint8_t Rtc::encode_hour(unsigned hour) const {
    if ((control_b_ & kHours24) != 0) return encode(hour);
    const uint8_t half = hour >= 12 ? kAfternoon : uint8_t{0};
    return static_cast<uint8_t>(encode(hour % 12 == 0 ? 12 : hour % 12) | half);
}

unsigned Rtc::decode_hour(uint8_t byte) const {
    if ((control_b_ & kHours24) != 0) return decode(byte);
    const unsigned hour = decode(byte & static_cast<uint8_t>(~kAfternoon)) % 12;
    return (byte & kAfternoon) != 0 ? hour + 12 : hour;
}

} // namespace liveupdate::vmm
