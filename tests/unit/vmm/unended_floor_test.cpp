#include "vmm/kvm/unended_floor.hpp"

#include <doctest/doctest.h>

#include <initializer_list>

namespace liveupdate::vmm::test {
namespace {

// A guest that ends an interrupt before each second look.
int64_t look_often(UnendedFloor& floor, std::initializer_list<int64_t> unended, int rounds) {
    int64_t ended = 0, found = 0;
    for (int i = 0; i < rounds; ++i)
        for (const int64_t one : unended)
            found = floor.look(one, ended++);
    return found;
}

TEST_CASE("what stands still while the guest ends others will never be ended") {
    UnendedFloor floor;
    CHECK(look_often(floor, {3, 4}, UnendedFloor::kSteady) == 3);
}

TEST_CASE("nothing is told before the guest has ended enough") {
    UnendedFloor floor;
    CHECK(look_often(floor, {3, 4}, UnendedFloor::kSteady / 2) == 0);
    CHECK(floor.look(3, UnendedFloor::kSteady) == 3);
}

TEST_CASE("looks that are far apart say nothing of what was between them") {
    UnendedFloor floor;
    CHECK(floor.look(30, 0) == 0);
    for (int64_t i = 1; i < UnendedFloor::kSteady; ++i)
        CHECK(floor.look(30, i * 100) == 0);
}

TEST_CASE("a guest that ends nothing has lost nothing") {
    UnendedFloor floor;
    int64_t found = 0;
    for (int i = 0; i < 1000; ++i)
        found += floor.look(2, 7);
    CHECK(found == 0);
}

TEST_CASE("a debt that grows, shrinks or goes up and down is no mistake") {
    UnendedFloor grows, shrinks, swings;
    for (int64_t i = 0; i < 500; ++i) {
        CHECK(grows.look(1 + i / 8, i) == 0);
        CHECK(shrinks.look(1 + (500 - i) / 8, i) == 0);
        CHECK(swings.look(5 + i % 4, i) == 0);
    }
}

TEST_CASE("a moment with nothing unended ends the doubt") {
    UnendedFloor floor;
    CHECK(look_often(floor, {1, 2, 1, 0}, 100) == 0);
}

TEST_CASE("what has been forgotten must be seen anew") {
    UnendedFloor floor;
    REQUIRE(look_often(floor, {1, 1}, UnendedFloor::kSteady) == 1);
    floor.forget();
    CHECK(floor.look(1, 1000) == 0);
}

} // namespace
} // namespace liveupdate::vmm::test
