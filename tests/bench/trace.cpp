#include "tests/bench/trace.hpp"

#include <algorithm>

namespace liveupdate::tests {
namespace {

constexpr auto kPeriod = std::chrono::milliseconds(2);

}

Trace::Trace(const Meter& meter)
    : meter_(meter), thread_([this](const std::stop_token& stop) {
          while (!stop.stop_requested()) {
              {
                  const std::lock_guard lock(mutex_);
                  readings_.push_back({Clock::now(), static_cast<double>(meter_.count())});
              }
              std::this_thread::sleep_for(kPeriod);
          }
      }) {}

// In a straight line from the reading before it to the one after it.
double Trace::count_at(Clock::time_point at) const {
    const auto after = std::lower_bound(readings_.begin(), readings_.end(), at,
        [](const Reading& reading, Clock::time_point when) { return reading.at < when; });
    if (after == readings_.begin()) return readings_.empty() ? 0 : readings_.front().count;
    if (after == readings_.end()) return readings_.back().count;
    const Reading& before = *std::prev(after);
    const double part = std::chrono::duration<double>(at - before.at) / (after->at - before.at);
    return before.count + part * (after->count - before.count);
}

double Trace::rate(Clock::time_point from, Clock::time_point to) const {
    const std::lock_guard lock(mutex_);
    return (count_at(to) - count_at(from)) / std::chrono::duration<double>(to - from).count() / 1e6;
}

} // namespace liveupdate::tests
