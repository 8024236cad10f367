// What benchmarks of downtime share: the gaps that the clock guest has recorded of its own TSC, and how
// samples are told.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "tests/guests/report.hpp"

namespace liveupdate::tests {

// Those of a vCPU that began at or after `from` (guest TSC), as far back as the report goes.
inline std::vector<::tests::guests::GapRecord> gaps_since(
    const ::tests::guests::Report& report, unsigned vcpu, uint64_t from) {
    using ::tests::guests::kGapRecords;
    const uint64_t count = ::tests::guests::read_field(report.vcpus[vcpu].clock.gap_count);
    std::vector<::tests::guests::GapRecord> found;
    for (uint64_t n = count > kGapRecords ? count - kGapRecords : 0; n < count; ++n) {
        const auto& gap = report.gaps[vcpu][n % kGapRecords];
        if (gap.start_tsc >= from) found.push_back(gap);
    }
    return found;
}

inline uint64_t guest_now(const ::tests::guests::Report& report) {
    return ::tests::guests::read_field(report.vcpus[0].now_tsc);
}

inline double percentile(std::vector<double> values, double p) {
    if (values.empty()) return 0;
    std::sort(values.begin(), values.end());
    const auto index = static_cast<size_t>(p * static_cast<double>(values.size() - 1) + 0.5);
    return values[std::min(index, values.size() - 1)];
}

inline void print_row(const std::string& name, const std::vector<double>& v, const char* unit) {
    std::printf("  %-34s median %8.3f  p99 %8.3f  max %8.3f  min %8.3f %s (n=%zu)\n", name.c_str(),
        percentile(v, 0.5), percentile(v, 0.99), percentile(v, 1), percentile(v, 0), unit, v.size());
}

} // namespace liveupdate::tests
