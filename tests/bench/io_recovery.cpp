// How soon after an update disk and network are as fast as before: the rate in each 100 ms from the
// switchover on, and from the end of the probation on, when the source is let go, against the second before
// the update; and the same at moments without an update, which is the noise.
#include <array>
#include <thread>

#include "tests/bench/gaps.hpp"
#include "tests/bench/io.hpp"
#include "tests/bench/trace.hpp"

namespace liveupdate::tests {
namespace {

using namespace std::chrono_literals;
using Moment = Trace::Clock::time_point;

constexpr auto kWindow = 100ms;
constexpr auto kBefore = 1000ms;
constexpr size_t kWindows = 5;
constexpr auto kSettle = 2s;

// By window: its rate over the rate before, one for each update.
using Windows = std::array<std::vector<double>, kWindows>;

void look(const Trace& trace, Moment began, Moment switched, Windows& into) {
    const double before = trace.rate(began - kBefore, began);
    for (size_t i = 0; i < kWindows; ++i) {
        const Moment from = switched + i * kWindow;
        into[i].push_back(trace.rate(from, from + kWindow) / before);
    }
}

struct Times {
    Moment began, switched, released;
};

Result<Moment> end_of(const supervisor::UpdateRecord& record, const std::string& name) {
    for (const auto& phase : record.phases)
        if (phase.phase == name)
            return Moment{
                std::chrono::milliseconds(record.started_unix_ms) + std::chrono::microseconds(phase.end_us)};
    return Error(ErrorCode::kInternal, "the record of the update has no phase '" + name + "'");
}

// The supervisor hears of the switchover within a millisecond.
Result<Times> update(LiveVm& vm, unsigned i) {
    TRY_ASSIGN(const auto record, vm.update(program(i % 2 == 0 ? "liveupdate-vmm-next" : "liveupdate-vmm")));
    if (record.outcome != supervisor::Outcome::kCompleted) return Error(ErrorCode::kRefused, record.reason);
    TRY_ASSIGN(const Moment switched, end_of(record, "pausing"));
    TRY_ASSIGN(const Moment released, end_of(record, "probation"));
    return Times{Moment{std::chrono::milliseconds(record.started_unix_ms)}, switched, released};
}

double mean(const std::vector<double>& values) {
    double sum = 0;
    for (const double value : values)
        sum += value;
    return sum / static_cast<double>(values.size());
}

void print(const char* what, const Windows& windows) {
    std::printf("  %s\n", what);
    for (size_t i = 0; i < kWindows; ++i)
        std::printf("    %3zu to %3zu ms   median %5.3f   mean %5.3f   10 %% below %5.3f   10 %% above %5.3f "
                    "(n=%zu)\n",
            i * 100, i * 100 + 100, percentile(windows[i], 0.5), mean(windows[i]),
            percentile(windows[i], 0.1), percentile(windows[i], 0.9), windows[i].size());
}

template <typename Guest>
Result<void> measure(Guest& guest, unsigned updates, const char* what) {
    const Trace trace(guest.meter());
    std::this_thread::sleep_for(kSettle);
    Windows switched, released, without;
    for (unsigned i = 0; i < updates; ++i) {
        std::this_thread::sleep_for(kBefore + kWindows * kWindow);
        const Moment nothing = Trace::Clock::now();
        std::this_thread::sleep_for(kBefore);
        look(trace, nothing, nothing, without);
        TRY_ASSIGN(const Times times, update(guest.vm(), i));
        std::this_thread::sleep_until(times.released + (kWindows + 1) * kWindow);
        look(trace, times.began, times.switched, switched);
        look(trace, times.began, times.released, released);
    }
    std::printf("%s: the rate against that of the second before\n", what);
    print("from the switchover on", switched);
    print("from the end of the probation on", released);
    print("without an update", without);
    return guest.check();
}

} // namespace

Result<void> bench_driver_recovery(unsigned updates) {
    TRY_ASSIGN(const auto guest, DiskGuest::start(Runner::kSupervisor));
    return measure(*guest, updates, "disk, a driver in ring 3 that polls");
}

Result<void> bench_recovery(Load load, unsigned updates, unsigned vcpus) {
    TRY_ASSIGN(const auto guest, LinuxGuest::start(load, Runner::kSupervisor, vcpus));
    return measure(*guest, updates, load == Load::kDisk ? "disk, Linux" : "network, Linux");
}

} // namespace liveupdate::tests
