#include "vmm/devices/reset.hpp"

#include <doctest/doctest.h>

#include "tests/unit/vmm/fakes.hpp"

namespace liveupdate::vmm::test {
namespace {

TEST_CASE("only the keyboard controller's pulse command resets the machine") {
    FakeMachine machine;
    KeyboardResetPort port(machine);
    for (uint32_t command = 0; command < 0xFE; ++command)
        port.write(0, 1, command);
    CHECK(machine.resets == 0);
    port.write(0, 1, 0xFE);
    CHECK(machine.resets == 1);
}

TEST_CASE("the keyboard controller is always ready and never has a key") {
    FakeMachine machine;
    KeyboardResetPort port(machine);
    CHECK((port.read(0, 1) & 0x03) == 0);
}

TEST_CASE("reset control starts a reset when bit 2 goes from 0 to 1") {
    FakeMachine machine;
    ResetControl control(machine);
    control.write(0, 1, 0x02);
    CHECK(machine.resets == 0);
    CHECK(control.read(0, 1) == 0x02);
    control.write(0, 1, 0x06);
    CHECK(machine.resets == 1);
    control.write(0, 1, 0x06);
    CHECK(machine.resets == 1);
    control.write(0, 1, 0x00);
    control.write(0, 1, 0x0E);
    CHECK(machine.resets == 2);
}

TEST_CASE("reset control remembers the kind of reset across an update") {
    FakeMachine machine;
    ResetControl source(machine), destination(machine);
    source.write(0, 1, 0xFB);
    const auto saved = source.save();
    REQUIRE(saved);
    REQUIRE(destination.load(*saved, 1));
    CHECK(destination.read(0, 1) == 0x0A);
    CHECK(machine.resets == 0);
}

} // namespace
} // namespace liveupdate::vmm::test
