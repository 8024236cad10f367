// Brownout: how long the guest's first pass over all its RAM takes after a switchover, beside a later pass,
// with the destination's page tables populated beforehand and without.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>

#include "tests/support/live_vm.hpp"

namespace {

using namespace liveupdate;
using namespace liveupdate::tests;
using ::tests::guests::kPassRecords;
using ::tests::guests::read_field;
using ::tests::guests::write_field;

struct Passes {
    std::vector<double> first, later; // ms
};

double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v.empty() ? 0 : v[v.size() / 2];
}

// One pass, asked for through the guest's report; its time in ms by the guest's own TSC.
double one_pass(LiveVm& vm) {
    auto& report = vm.writable_report();
    const uint64_t pass = read_field(report.vcpus[0].pattern.passes) + 1;
    write_field(report.header.go, pass);
    if (!LiveVm::eventually(
            [&] { return read_field(report.vcpus[0].pattern.passes) >= pass; }, std::chrono::seconds(120)))
        return -1;
    const auto& record = report.passes[0][(pass - 1) % kPassRecords];
    return static_cast<double>(read_field(record.end_tsc) - read_field(record.start_tsc)) /
           static_cast<double>(read_field(report.header.tsc_khz));
}

Result<Passes> measure(
    const char* populate, const std::string& backing, unsigned memory_mib, unsigned rounds) {
    LiveVmOptions options;
    options.guest = "pattern.elf";
    options.memory_mib = memory_mib;
    options.backing = backing;
    // Only writes: a read first would let the host map sixteen pages at a time around it.
    options.cmdline = "step=1 touch=4096 verify=0";
    options.witness = false;
    options.update_toml =
        std::string("probation = \"1ms\"\nrehearse = \"never\"\npopulate = ") + populate + "\n";
    TRY_ASSIGN(auto vm, LiveVm::start(options));
    if (!vm->guest_started()) return Error(ErrorCode::kTimeout, "the guest did not start");
    if (one_pass(*vm) < 0) return Error(ErrorCode::kTimeout, "the first pass did not end");
    Passes passes;
    for (unsigned i = 0; i < rounds; ++i) {
        TRY_ASSIGN(
            const auto record, vm->update(program(i % 2 == 0 ? "liveupdate-vmm-next" : "liveupdate-vmm")));
        if (record.outcome != supervisor::Outcome::kCompleted)
            return Error(ErrorCode::kRefused, record.reason);
        passes.first.push_back(one_pass(*vm));
        one_pass(*vm);
        passes.later.push_back(one_pass(*vm));
    }
    if (read_field(vm->report().header.errors) != 0)
        return Error(ErrorCode::kInternal, "the guest found damaged RAM");
    return passes;
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app{"Time of the guest's first pass over its RAM after an update"};
    unsigned memory_mib = 1056, rounds = 5;
    std::string backing = "memfd";
    app.add_option("--memory", memory_mib, "MiB");
    app.add_option("--rounds", rounds);
    app.add_option("--backing", backing);
    CLI11_PARSE(app, argc, argv);
    if (const std::string why = why_no_kvm(); !why.empty()) {
        std::printf("SKIPPED: %s\n", why.c_str());
        return 0;
    }
    double first[2] = {}, later[2] = {};
    int i = 0;
    for (const char* populate : {"true", "false"}) {
        auto passes = measure(populate, backing, memory_mib, rounds);
        if (!passes) {
            std::fprintf(stderr, "bench: %s\n", passes.error().message.c_str());
            return 1;
        }
        first[i] = median(passes->first);
        later[i] = median(passes->later);
        std::printf("populate %-5s  %u MiB, one write a 4 KiB page: first pass median %8.1f ms, later pass "
                    "%6.1f ms (n=%u)\n",
            populate, memory_mib, first[i], later[i], rounds);
        ++i;
    }
    std::printf(
        "populating makes the first pass %.1f times as fast; it still takes %.1f times a later pass\n",
        first[1] / first[0], first[0] / later[0]);
    return 0;
}
