#include "vmm/boot/reset_state.hpp"

#include <doctest/doctest.h>

namespace liveupdate::vmm::test {
namespace {

TEST_CASE("after a reset the next instruction is 16 bytes below 4 GiB in real mode") {
    const InitialState state = reset_state();
    CHECK(state.cs.base + state.rip == 0xFFFFFFF0);
    CHECK(state.cs.selector == 0xF000);
    CHECK(state.cs.limit == 0xFFFF);
    CHECK((state.cr0 & 1) == 0);
    CHECK(state.rflags == 2);
    CHECK(state.data.base == 0);
    CHECK(state.idt.limit == 0xFFFF);
}

} // namespace
} // namespace liveupdate::vmm::test
