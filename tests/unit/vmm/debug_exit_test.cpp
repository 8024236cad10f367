#include "vmm/devices/debug_exit.hpp"

#include <doctest/doctest.h>

#include "tests/unit/vmm/fakes.hpp"

namespace liveupdate::vmm::test {
namespace {

TEST_CASE("a write to the debug-exit port ends the machine with an odd status") {
    FakeMachine machine;
    DebugExit device(machine);
    device.write(0, 4, 0);
    device.write(0, 4, 0x10);
    device.write(0, 1, 0x7F);
    CHECK(machine.exits == std::vector<uint32_t>{1, 0x21, 0xFF});
}

TEST_CASE("the debug-exit port reads as 0 and its other ports do nothing") {
    FakeMachine machine;
    DebugExit device(machine);
    CHECK(device.read(0, 4) == 0);
    device.write(2, 1, 1);
    CHECK(machine.exits.empty());
}

TEST_CASE("the debug-exit device says why it has no state and cannot be saved by mistake") {
    FakeMachine machine;
    DebugExit device(machine);
    REQUIRE(std::holds_alternative<Stateless>(device.state()));
    CHECK_FALSE(std::get<Stateless>(device.state()).reason.empty());
    CHECK_FALSE(device.save());
    CHECK_FALSE(device.load("", 1));
}

} // namespace
} // namespace liveupdate::vmm::test
