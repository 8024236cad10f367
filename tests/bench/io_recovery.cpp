// How soon after an update disk and network are as fast as before: the rate in each 100 ms from the
// switchover on, and from the moment on when the source is let go, against the second before the update; the
// same at moments without an update, which is the noise; and the rate while the update prepares.
#include <array>
#include <functional>
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
constexpr auto kProbation = 1s; // of ours: DiskGuest and LinuxGuest ask for as much

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

// One update of a guest whose meter is watched: the n-th.
using Update = std::function<Result<Times>(unsigned)>;

Result<Moment> end_of(const supervisor::UpdateRecord& record, const std::string& name) {
    for (const auto& phase : record.phases)
        if (phase.phase == name)
            return Moment{
                std::chrono::milliseconds(record.started_unix_ms) + std::chrono::microseconds(phase.end_us)};
    return Error(ErrorCode::kInternal, "the record of the update has no phase '" + name + "'");
}

// The supervisor hears of the switchover within a millisecond.
Result<Times> update(LiveVm& vm, unsigned n) {
    TRY_ASSIGN(const auto record, vm.update(program(n % 2 == 0 ? "liveupdate-vmm-next" : "liveupdate-vmm")));
    if (record.outcome != supervisor::Outcome::kCompleted) return Error(ErrorCode::kRefused, record.reason);
    TRY_ASSIGN(const Moment switched, end_of(record, "pausing"));
    TRY_ASSIGN(const Moment released, end_of(record, "probation"));
    return Times{Moment{std::chrono::milliseconds(record.started_unix_ms)}, switched, released};
}

// QEMU's own, with the source kept as long as our probation is.
Result<Times> update(QemuVm& vm) {
    Times times;
    times.began = Trace::Clock::now();
    TRY(vm.prepare());
    TRY(vm.switch_over());
    times.switched = vm.resumed_at();
    std::this_thread::sleep_until(times.switched + kProbation);
    times.released = Trace::Clock::now();
    vm.finish();
    return times;
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

Result<void> measure(const Meter& meter, const Update& update, unsigned updates, const char* what) {
    const Trace trace(meter);
    std::this_thread::sleep_for(kSettle);
    Windows switched, released, without;
    std::vector<double> preparing;
    for (unsigned i = 0; i < updates; ++i) {
        std::this_thread::sleep_for(kBefore + kWindows * kWindow);
        const Moment nothing = Trace::Clock::now();
        std::this_thread::sleep_for(kBefore);
        look(trace, nothing, nothing, without);
        TRY_ASSIGN(const Times times, update(i));
        std::this_thread::sleep_until(times.released + (kWindows + 1) * kWindow);
        preparing.push_back(
            trace.rate(times.began, times.switched) / trace.rate(times.began - kBefore, times.began));
        look(trace, times.began, times.switched, switched);
        look(trace, times.began, times.released, released);
    }
    std::printf("%s: the rate against that of the second before\n", what);
    std::printf("  from the update's beginning to the switchover: median %5.3f   mean %5.3f\n",
        percentile(preparing, 0.5), mean(preparing));
    print("from the switchover on", switched);
    print("from the moment on when the source is let go", released);
    print("without an update", without);
    return {};
}

} // namespace

namespace {

// The same guest under either; `start` makes it.
template <typename Start>
Result<void> measure_both(Start start, unsigned updates, const char* what) {
    {
        TRY_ASSIGN(const auto guest, start(Runner::kSupervisor));
        const auto ours = [&](unsigned n) { return update(guest->vm(), n); };
        TRY(measure(guest->meter(), ours, updates, what));
        TRY(guest->check());
    }
    if (const std::string why = why_no_qemu(); !why.empty()) {
        std::printf("SKIPPED: QEMU beside it: %s\n", why.c_str());
        return {};
    }
    TRY_ASSIGN(const auto guest, start(Runner::kQemu));
    const auto qemus = [&](unsigned) { return update(guest->qemu()); };
    TRY(measure(guest->meter(), qemus, updates, "the same under QEMU, x-ignore-shared"));
    // No reason to give up: what QEMU loses belongs to the comparison.
    if (const auto sound = guest->check(); !sound)
        std::printf("  after QEMU's updates: %s\n", sound.error().message.c_str());
    return {};
}

} // namespace

Result<void> bench_driver_recovery(unsigned updates) {
    const auto start = [](Runner runner) { return DiskGuest::start(runner); };
    return measure_both(start, updates, "disk, a driver in ring 3 that polls, liveupdate");
}

Result<void> bench_network_driver_recovery(unsigned updates) {
    const auto start = [](Runner runner) {
        return NetworkGuest::start(runner, 64, NetworkGuest::Purpose::kUpdatable);
    };
    return measure_both(
        start, updates, "network, a driver in ring 3 that polls, packets both ways, liveupdate");
}

Result<void> bench_recovery(Load load, unsigned updates, unsigned vcpus) {
    TRY_ASSIGN(const auto guest, LinuxGuest::start(load, Runner::kSupervisor, vcpus));
    const auto ours = [&](unsigned n) { return update(guest->vm(), n); };
    TRY(measure(guest->meter(), ours, updates, load == Load::kDisk ? "disk, Linux" : "network, Linux"));
    return guest->check();
}

} // namespace liveupdate::tests
