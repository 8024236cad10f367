// CLOCK_MONOTONIC and the TSC of this host, read as if at one moment: a thread that loses its CPU between the
// two would make them disagree by the time it lost.
#pragma once

#include <x86intrin.h>

#include <cstdint>

#include "handoff/base/deadline.hpp"

namespace liveupdate {

struct HostClocks {
    uint64_t monotonic_ns = 0;
    uint64_t tsc = 0;
};

// The least disturbed of some readings, each the TSC between two of CLOCK_MONOTONIC, up to the first good
// one. `monotonic` (ns) and `tsc` (ticks) read a clock.
template <typename Monotonic, typename Tsc>
HostClocks read_together(Monotonic monotonic, Tsc tsc) {
    constexpr uint64_t kGoodNs = 200;
    constexpr int kTries = 64;
    HostClocks best;
    uint64_t least = UINT64_MAX;
    for (int tries = 0; tries < kTries && least > kGoodNs; ++tries) {
        const uint64_t before = monotonic();
        const uint64_t counter = tsc();
        const uint64_t took = monotonic() - before;
        if (took >= least) continue;
        least = took;
        best = {before + took / 2, counter};
    }
    return best;
}

inline HostClocks host_clocks() {
    return read_together(monotonic_ns, [] { return __rdtsc(); });
}

} // namespace liveupdate
