#include "supervisor/memory_layout.hpp"

#include <doctest/doctest.h>

#include <array>
#include <vector>

namespace liveupdate::supervisor::test {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;
constexpr uint64_t kPage = 4096;
using Row = std::array<uint64_t, 4>; // gpa, size, block, offset

std::vector<Row> laid_out(const std::vector<uint64_t>& sizes) {
    auto regions = lay_out_memory(sizes);
    REQUIRE(regions);
    std::vector<Row> rows;
    for (const auto& r : *regions)
        rows.push_back({r.gpa, r.size, r.block, r.offset});
    return rows;
}

TEST_CASE("RAM below 3 GiB lies at 0 in one region") {
    CHECK(laid_out({256 << 20}) == std::vector<Row>{{0, 256 << 20, 0, 0}});
    CHECK(laid_out({3 * kGiB}) == std::vector<Row>{{0, 3 * kGiB, 0, 0}});
}

TEST_CASE("a block across 3 GiB is split around the PCI hole") {
    CHECK(laid_out({8 * kGiB}) == std::vector<Row>{{0, 3 * kGiB, 0, 0}, {4 * kGiB, 5 * kGiB, 0, 3 * kGiB}});
}

TEST_CASE("blocks follow each other and only the one across the hole is split") {
    CHECK(
        laid_out({2 * kGiB, 2 * kGiB, kGiB}) == std::vector<Row>{{0, 2 * kGiB, 0, 0}, {2 * kGiB, kGiB, 1, 0},
                                                    {4 * kGiB, kGiB, 1, kGiB}, {5 * kGiB, kGiB, 2, 0}});
    CHECK(laid_out({3 * kGiB, kPage}) == std::vector<Row>{{0, 3 * kGiB, 0, 0}, {4 * kGiB, kPage, 1, 0}});
}

TEST_CASE("sizes that make no memory are refused") {
    CHECK_FALSE(lay_out_memory(std::vector<uint64_t>{0}));
    CHECK_FALSE(lay_out_memory(std::vector<uint64_t>{kPage + 1}));
    CHECK_FALSE(lay_out_memory(std::vector<uint64_t>{handoff::kMaxGuestPhysical}));
    CHECK(lay_out_memory(std::vector<uint64_t>{handoff::kMaxGuestPhysical - kGiB}));
}

} // namespace
} // namespace liveupdate::supervisor::test
