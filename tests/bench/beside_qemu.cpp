// The same guest, updated by turns under our VMM and under QEMU (x-ignore-shared on one host, microvm): its
// own downtime, the longest gap in its TSC that belongs to the switchover, and by how much its TSC was held
// back: QEMU sets it to what it was when the guest stopped, so that the guest does not see all of its
// downtime.
#include <x86intrin.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <thread>

#include "tests/bench/gaps.hpp"
#include "tests/support/live_vm.hpp"
#include "tests/support/qemu_vm.hpp"

namespace {

using namespace liveupdate;
using namespace liveupdate::tests;
using ::tests::guests::GapRecord;
using ::tests::guests::read_field;
using ::tests::guests::Report;

constexpr const char* kCmdline = "gap_us=50";
constexpr auto kSettle = std::chrono::milliseconds(50); // what an update leaves behind belongs to it

struct Settings {
    unsigned vcpus = 1;
    unsigned memory_mib = 256;
    unsigned updates = 20;
};

// Host TSC less guest TSC, in ticks: the least of many looks at what vCPU 0 has just written down.
int64_t tsc_lag(const Report& report) {
    int64_t least = INT64_MAX;
    for (int i = 0; i < 2000; ++i) {
        const uint64_t guest = guest_now(report);
        least = std::min(least, static_cast<int64_t>(__rdtsc() - guest));
    }
    return least;
}

// Where the guest's TSC stood when the operation began and around the switchover.
struct Moments {
    uint64_t operation, first, last;
    int64_t lag_before;
};

// What one kind of update took from the guest, in ms.
struct Samples {
    std::vector<double> downtime;
    std::vector<double> hidden;
    std::vector<double> stolen; // gaps over 100 us from the beginning of the operation to its end, per vCPU

    void add(const Report& report, unsigned vcpus, const Moments& at) {
        const auto khz = static_cast<double>(read_field(report.header.tsc_khz));
        double longest = 0, sum = 0;
        // A guest that is stopped between reading its TSC and writing it down has seen a little more than it
        // says.
        const uint64_t last = at.last + read_field(report.header.tsc_khz) / 10;
        for (unsigned v = 0; v < vcpus; ++v)
            for (const GapRecord& gap : gaps_since(report, v, at.operation)) {
                const double ms = static_cast<double>(gap.end_tsc - gap.start_tsc) / khz;
                if (ms > 0.1) sum += ms;
                if (gap.end_tsc >= at.first && gap.start_tsc <= last) longest = std::max(longest, ms);
            }
        hidden.push_back(std::max(0.0, static_cast<double>(tsc_lag(report) - at.lag_before) / khz));
        downtime.push_back(longest + hidden.back());
        stolen.push_back(sum / vcpus);
    }
    void print(const char* who) const {
        std::printf("%s\n", who);
        print_row("guest's downtime", downtime, "ms");
        print_row("  of it hidden from its TSC", hidden, "ms");
        print_row("whole update: gaps over 100 us", stolen, "ms");
    }
};

Result<void> update_ours(LiveVm& vm, unsigned i, const Settings& s, Samples& out) {
    const uint64_t from = guest_now(vm.report());
    const int64_t lag = tsc_lag(vm.report());
    TRY_ASSIGN(const auto record, vm.update(program(i % 2 == 0 ? "liveupdate-vmm-next" : "liveupdate-vmm")));
    if (record.outcome != supervisor::Outcome::kCompleted) return Error(ErrorCode::kRefused, record.reason);
    std::this_thread::sleep_for(kSettle);
    const uint64_t at = record.guest_tsc_at_switchover.value_or(0);
    out.add(vm.report(), s.vcpus, {from, at, at, lag});
    return {};
}

// The largest gap from the order to migrate to the answer that the destination runs: QEMU does not tell when.
Result<void> update_qemu(QemuVm& vm, const Settings& s, Samples& out) {
    const uint64_t from = guest_now(vm.report());
    const int64_t lag = tsc_lag(vm.report());
    TRY(vm.prepare());
    const uint64_t ordered = guest_now(vm.report());
    TRY(vm.switch_over());
    const uint64_t resumed = guest_now(vm.report());
    vm.finish();
    std::this_thread::sleep_for(kSettle);
    out.add(vm.report(), s.vcpus, {from, ordered, resumed, lag});
    return {};
}

Result<void> run(const Settings& s) {
    LiveVmOptions options;
    options.vcpus = s.vcpus;
    options.memory_mib = s.memory_mib;
    options.cmdline = kCmdline;
    options.witness = false;
    options.update_toml = "probation = \"50ms\"\n";
    QemuOptions qemu_options;
    qemu_options.cmdline = kCmdline;
    qemu_options.vcpus = s.vcpus;
    qemu_options.memory_mib = s.memory_mib;
    Samples ours, qemus;
    // One guest at a time: a guest that spins has the CPUs that the other one's update needs.
    for (const unsigned round : {0u, 1u}) {
        {
            TRY_ASSIGN(const auto vm, LiveVm::start(options));
            if (!vm->guest_started()) return Error(ErrorCode::kTimeout, "the guest did not start");
            for (unsigned i = 0; i < s.updates / 2; ++i)
                TRY(update_ours(*vm, i, s, ours).context("our update in round " + std::to_string(round)));
        }
        TRY_ASSIGN(const auto vm, QemuVm::start(qemu_options));
        if (!vm->guest_started()) return Error(ErrorCode::kTimeout, "the guest did not start under QEMU");
        for (unsigned i = 0; i < s.updates / 2; ++i)
            TRY(update_qemu(*vm, s, qemus).context("QEMU's update in round " + std::to_string(round)));
    }
    std::printf("%u vCPU, %u MiB, %u updates each, two rounds by turns\n", s.vcpus, s.memory_mib, s.updates);
    ours.print("liveupdate");
    qemus.print("QEMU, x-ignore-shared, microvm");
    std::printf("ratio of the medians, QEMU's to ours: %.1f\n",
        percentile(qemus.downtime, 0.5) / percentile(ours.downtime, 0.5));
    return {};
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app{"The guest's own downtime under our VMM and under QEMU"};
    Settings s;
    app.add_option("--vcpus", s.vcpus);
    app.add_option("--memory", s.memory_mib, "MiB");
    app.add_option("--updates", s.updates, "of each kind")->check(CLI::Range(2u, 1000u));
    CLI11_PARSE(app, argc, argv);
    for (const std::string& why : {why_no_kvm(), why_no_qemu()})
        if (!why.empty()) {
            std::printf("SKIPPED: %s\n", why.c_str());
            return 0;
        }
    const auto done = run(s);
    if (!done) std::fprintf(stderr, "bench: %s\n", done.error().message.c_str());
    return done ? 0 : 1;
}
