#include "vmm/devices/acpi_pm.hpp"

#include <doctest/doctest.h>

#include "tests/unit/vmm/fakes.hpp"
#include "vmm/devices/acpi_pm.pb.h"

namespace liveupdate::vmm::test {
namespace {

// Offsets of the registers from the first port.
constexpr uint16_t kStatus = 0, kEnable = 2, kControl = 4, kTimer = 8;
constexpr uint32_t kPowerButton = 1 << 8, kSleepEnable = 1 << 13;
constexpr uint64_t kSecond = 1'000'000'000;

struct Rig {
    FakeLine sci;
    FakeMachine machine;
    FakeClock clock;
    AcpiPm pm{sci, machine, clock};
};

TEST_CASE("the power button raises the SCI until its status is cleared") {
    Rig rig;
    rig.pm.write(kEnable, 2, kPowerButton);
    CHECK_FALSE(rig.sci.level);
    CHECK(rig.pm.press_power_button());
    CHECK(rig.sci.level);
    CHECK(rig.pm.read(kStatus, 2) == kPowerButton);
    rig.pm.write(kStatus, 2, 0xFFFF & ~kPowerButton); // clears all others
    CHECK(rig.sci.level);
    rig.pm.write(kStatus, 2, kPowerButton);
    CHECK_FALSE(rig.sci.level);
    CHECK(rig.pm.read(kStatus, 2) == 0);
}

TEST_CASE("a guest that has not enabled the power button does not hear of it, now or later") {
    Rig rig;
    CHECK_FALSE(rig.pm.press_power_button());
    rig.pm.write(kEnable, 2, kPowerButton);
    CHECK_FALSE(rig.sci.level);
    rig.pm.write(kEnable, 2, 0);
    CHECK_FALSE(rig.pm.press_power_button());
}

TEST_CASE("disabling an event lowers the SCI and keeps its status") {
    Rig rig;
    rig.pm.write(kEnable, 2, kPowerButton);
    REQUIRE(rig.pm.press_power_button());
    rig.pm.write(kEnable, 2, 0);
    CHECK_FALSE(rig.sci.level);
    rig.pm.write(kEnable, 2, kPowerButton);
    CHECK(rig.sci.level);
}

TEST_CASE("registers may be accessed by bytes and in one") {
    Rig rig;
    rig.pm.write(kEnable + 1, 1, kPowerButton >> 8);
    CHECK(rig.pm.read(kEnable, 2) == kPowerButton);
    REQUIRE(rig.pm.press_power_button());
    CHECK(rig.pm.read(kStatus, 4) == (kPowerButton | kPowerButton << 16));
    CHECK(rig.pm.read(kStatus + 1, 1) == kPowerButton >> 8);
    rig.pm.write(kStatus + 1, 1, kPowerButton >> 8);
    CHECK_FALSE(rig.sci.level);
}

TEST_CASE("the machine is always in ACPI mode, and enable bits that ACPI defines can be set") {
    Rig rig;
    CHECK(rig.pm.read(kControl, 2) == 1);
    rig.pm.write(kControl, 2, 0);
    CHECK((rig.pm.read(kControl, 2) & 1) == 1);
    rig.pm.write(kEnable, 2, 0xFFFF);
    CHECK(rig.pm.read(kEnable, 2) == 0x0521);
}

TEST_CASE("soft-off ends the machine, other sleeping states do nothing") {
    Rig rig;
    rig.pm.write(kControl, 2, AcpiPm::kSoftOffType << 10); // the type alone
    for (uint32_t type = 0; type < 8; ++type)
        if (type != AcpiPm::kSoftOffType) rig.pm.write(kControl, 2, type << 10 | kSleepEnable);
    CHECK(rig.machine.power_offs == 0);
    rig.pm.write(kControl, 2, AcpiPm::kSoftOffType << 10 | kSleepEnable);
    CHECK(rig.machine.power_offs == 1);
    CHECK(rig.pm.read(kControl, 2) == (AcpiPm::kSoftOffType << 10 | 1)); // SLP_EN reads as 0
    CHECK(rig.machine.exits.empty());
}

TEST_CASE("the timer counts 3.579545 MHz of the host's monotonic time and wraps at 32 bits") {
    Rig rig;
    CHECK(rig.pm.read(kTimer, 4) == 0);
    rig.clock.monotonic += kSecond;
    CHECK(rig.pm.read(kTimer, 4) == 3'579'545);
    rig.clock.realtime += 1000 * kSecond; // somebody sets the host's clock
    CHECK(rig.pm.read(kTimer, 4) == 3'579'545);
    rig.clock.monotonic += 1999 * kSecond;
    CHECK(rig.pm.read(kTimer, 4) == static_cast<uint32_t>(2000 * AcpiPm::kTimerHz));
    rig.clock.monotonic += uint64_t{1} << 60; // some 36 years
    CHECK(rig.pm.read(kTimer + 1, 1) == (rig.pm.read(kTimer, 4) >> 8 & 0xFF));
    rig.pm.write(kTimer, 4, 0);
    CHECK(rig.pm.read(kTimer, 4) != 0);
}

TEST_CASE("an update neither stops the timer nor loses a press of the button") {
    Rig source;
    source.pm.write(kEnable, 2, kPowerButton);
    source.clock.monotonic += 5 * kSecond;
    REQUIRE(source.pm.press_power_button());
    const auto saved = source.pm.save();
    REQUIRE(saved);

    FakeLine sci;
    FakeMachine machine;
    FakeClock clock;
    clock.monotonic = source.clock.monotonic + kSecond; // made and loaded later
    AcpiPm destination(sci, machine, clock);
    REQUIRE(destination.load(*saved, 1));
    source.clock.monotonic = clock.monotonic;
    CHECK(destination.read(kTimer, 4) == 6 * AcpiPm::kTimerHz);
    CHECK(destination.read(kTimer, 4) == source.pm.read(kTimer, 4));
    CHECK(sci.level);
    CHECK(destination.read(kStatus, 2) == kPowerButton);
    CHECK(machine.power_offs == 0);
}

TEST_CASE("a restore lets the timer go on from where it stood") {
    Rig source;
    source.clock.monotonic += 5 * kSecond;
    const auto saved = source.pm.save();
    REQUIRE(saved);
    FakeLine sci;
    FakeMachine machine;
    FakeClock clock;
    clock.monotonic = source.clock.monotonic - 4 * kSecond; // the host has been started anew
    AcpiPm destination(sci, machine, clock);
    REQUIRE(destination.load(*saved, 1));
    destination.move_clock(clock.monotonic - source.clock.monotonic);
    CHECK(destination.read(kTimer, 4) == 5 * AcpiPm::kTimerHz);
    clock.monotonic += kSecond;
    CHECK(destination.read(kTimer, 4) == 6 * AcpiPm::kTimerHz);
}

} // namespace
} // namespace liveupdate::vmm::test
