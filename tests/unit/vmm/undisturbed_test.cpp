#include "vmm/kvm/undisturbed.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <thread>

#include "handoff/base/result.hpp"

namespace liveupdate::vmm::test {
namespace {

void lose_the_cpu() {
    std::this_thread::sleep_for(std::chrono::nanoseconds(2 * kClockTakesNs));
}

TEST_CASE("a clock that was read while its thread lost the CPU is read again, with a new reference") {
    int reads = 0;
    uint64_t first = 0;
    const Result<uint64_t> reference = undisturbed([&](uint64_t before) -> Result<uint64_t> {
        if (++reads == 1) {
            first = before;
            lose_the_cpu();
        }
        return before;
    });
    REQUIRE(reference);
    CHECK(reads >= 2);
    CHECK(*reference >= first + 2 * kClockTakesNs);
}

TEST_CASE("a clock that is always disturbed is taken as it is in the end, and an error is not tried again") {
    int reads = 0;
    CHECK(undisturbed([&](uint64_t) -> Result<void> {
        ++reads;
        lose_the_cpu();
        return {};
    }));
    CHECK(reads == kClockTries);
    reads = 0;
    CHECK_FALSE(undisturbed([&](uint64_t) -> Result<void> {
        ++reads;
        lose_the_cpu();
        return Error(ErrorCode::kSystem, "no clock");
    }));
    CHECK(reads == 1);
}

} // namespace
} // namespace liveupdate::vmm::test
