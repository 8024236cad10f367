#include "handoff/base/host_clocks.hpp"

#include <doctest/doctest.h>

#include <vector>

namespace liveupdate::test {
namespace {

// Clocks that advance together, and a thread that loses its CPU before some of its readings.
struct Host {
    std::vector<uint64_t> lost_ns; // before each reading of a clock; nothing more is lost thereafter
    uint64_t now_ns = 1'000'000;
    size_t reads = 0;

    uint64_t read() {
        now_ns += 20 + (reads < lost_ns.size() ? lost_ns[reads] : 0);
        ++reads;
        return now_ns;
    }
    // With a TSC of 1 GHz that has counted 500 more.
    HostClocks clocks() {
        return read_together([this] { return read(); }, [this] { return read() + 500; });
    }
};

uint64_t apart(HostClocks clocks) {
    const uint64_t tsc_ns = clocks.tsc - 500;
    return tsc_ns > clocks.monotonic_ns ? tsc_ns - clocks.monotonic_ns : clocks.monotonic_ns - tsc_ns;
}

TEST_CASE("clocks are read once where nothing disturbs") {
    Host host;
    CHECK(apart(host.clocks()) <= 20);
    CHECK(host.reads == 3);
}

TEST_CASE("a thread that loses its CPU between two clocks reads them again") {
    Host host;
    host.lost_ns = {0, 3'000'000, 0, 0, 0, 5'000'000};
    CHECK(apart(host.clocks()) <= 20);
    CHECK(host.reads == 9);
}

TEST_CASE("where every reading is disturbed the least disturbed one counts") {
    Host host;
    host.lost_ns.assign(1000, 700'000);
    host.lost_ns[10] = host.lost_ns[11] = 1'000;
    CHECK(apart(host.clocks()) <= 1'020);
    CHECK(host.reads < 1000);
}

TEST_CASE("the host's own clocks") {
    const HostClocks first = host_clocks();
    const HostClocks second = host_clocks();
    CHECK(second.monotonic_ns >= first.monotonic_ns);
    CHECK(second.tsc > first.tsc);
}

} // namespace
} // namespace liveupdate::test
