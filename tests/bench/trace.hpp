// A meter read every 2 ms, so that afterwards the rate in any stretch of time can be told.
#pragma once

#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

#include "tests/bench/meter.hpp"

namespace liveupdate::tests {

class Trace {
public:
    using Clock = std::chrono::system_clock; // as records of updates tell their times

    // Reads the meter, which outlives this, until it is destroyed.
    explicit Trace(const Meter& meter);

    // MB/s, or millions of packets a second, between two moments that lie in the past and not before the
    // trace's beginning.
    double rate(Clock::time_point from, Clock::time_point to) const;

private:
    struct Reading {
        Clock::time_point at;
        double count;
    };
    double count_at(Clock::time_point at) const;

    const Meter& meter_;
    mutable std::mutex mutex_;
    std::vector<Reading> readings_;
    std::jthread thread_;
};

} // namespace liveupdate::tests
