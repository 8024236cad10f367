// Extra host memory during an update: what source, destination and supervisor hold for themselves, added up,
// beside what it was before. Guest RAM is shared memory and not counted; page tables are told apart.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <thread>

#include "tests/support/live_vm.hpp"
#include "tests/support/memory_use.hpp"
#include "tests/support/other_qemu.hpp"
#include "tests/support/private_ram.hpp"

namespace {

using namespace liveupdate;
using namespace liveupdate::tests;

struct Usage {
    uint64_t anonymous_kib = 0; // RssAnon: private to the process
    uint64_t files_kib = 0;     // RssFile: programs and libraries, mostly shared between the processes
    uint64_t tables_kib = 0;    // VmPTE
};

Usage usage_of(pid_t pid) {
    return {
        kib_of(pid, "status", "RssAnon"), kib_of(pid, "status", "RssFile"), kib_of(pid, "status", "VmPTE")};
}

// The supervisor and its children.
Usage usage_of_vm(pid_t supervisor) {
    Usage sum = usage_of(supervisor);
    for (const pid_t pid : children_of(supervisor)) {
        const Usage u = usage_of(pid);
        sum.anonymous_kib += u.anonymous_kib;
        sum.files_kib += u.files_kib;
        sum.tables_kib += u.tables_kib;
    }
    return sum;
}

double mib(uint64_t kib) {
    return static_cast<double>(kib) / 1024;
}

double mib_of(uint64_t bytes) {
    return static_cast<double>(bytes) / (1 << 20);
}

// Here guest RAM is the processes' own memory, and counted.
int measure_private(unsigned memory_mib, unsigned updates, unsigned vcpus) {
    const MemoryGroup group;
    LiveVmOptions options;
    options.vmm = kQemuPath;
    options.qemu_toml = "cpu = \"host,-arch-capabilities\"\nmachine = \"q35\"\n";
    options.guest = "pattern.elf";
    options.cmdline = "touch=4096";
    options.backing = "private";
    options.memory_mib = memory_mib;
    options.vcpus = vcpus;
    auto vm = LiveVm::start(options);
    if (!vm || !(*vm)->guest_started()) {
        std::fprintf(stderr, "bench: %s\n", vm ? "the guest did not start" : vm.error().message.c_str());
        return 1;
    }
    // Of the vCPU that is behind the others.
    const auto passes = [&] {
        uint64_t least = UINT64_MAX;
        for (unsigned v = 0; v < vcpus; ++v)
            least = std::min(least, ::tests::guests::read_field((*vm)->report().vcpus[v].pattern.passes));
        return least;
    };
    LiveVm::eventually([&] { return passes() > 2; }, std::chrono::minutes(2));
    for (unsigned i = 0; i < updates; ++i) {
        MemoryWatch watch((*vm)->supervisor_pid(), group);
        const auto record = (*vm)->update(kQemuPath);
        const MemoryUse before = watch.before(), peak = watch.stop();
        if (!record || record->outcome != supervisor::Outcome::kCompleted) {
            std::fprintf(
                stderr, "bench: %s\n", record ? record->reason.c_str() : record.error().message.c_str());
            return 1;
        }
        const auto more = [&](uint64_t now, uint64_t then) {
            return (mib_of(now) - mib_of(then)) * 100 / memory_mib;
        };
        std::printf(
            "%u MiB, private: %.0f MiB mapped before, at most %.0f MiB during (+%.1f %% of the guest's); ",
            memory_mib, mib_of(before.mapped), mib_of(peak.mapped), more(peak.mapped, before.mapped));
        if (before.charged && peak.charged)
            std::printf("%.0f MiB charged, at most %.0f MiB (+%.1f %%); ", mib_of(*before.charged),
                mib_of(*peak.charged), more(*peak.charged, *before.charged));
        for (const auto& phase : record->phases)
            std::printf("%s %.1f ms, ", phase.phase.c_str(),
                static_cast<double>(phase.end_us - phase.start_us) / 1e3);
        std::printf("blackout %.1f ms, %.1f s in all\n",
            static_cast<double>(record->blackout_us.value_or(0)) / 1000,
            static_cast<double>(record->duration_us) / 1e6);
    }
    const uint64_t seen = passes();
    LiveVm::eventually([&] { return passes() > seen + 1; }, std::chrono::minutes(2));
    const uint64_t errors = ::tests::guests::read_field((*vm)->report().header.errors);
    std::printf(
        "the guest has verified all of its RAM: %llu errors\n", static_cast<unsigned long long>(errors));
    return errors == 0 ? 0 : 1;
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app{"Extra host memory during an update"};
    unsigned memory_mib = 256, updates = 10, vcpus = 1;
    app.add_option("--memory", memory_mib, "MiB");
    app.add_option("--updates", updates);
    bool apart = false;
    app.add_flag(
        "--private", apart, "a QEMU guest of private RAM, all of it in use, which is moved by postcopy");
    app.add_option("--vcpus", vcpus, "of that guest: each goes through a part of RAM of its own");
    CLI11_PARSE(app, argc, argv);
    if (const std::string why = why_no_kvm(); !why.empty()) {
        std::printf("SKIPPED: %s\n", why.c_str());
        return 0;
    }
    if (apart) return measure_private(memory_mib, updates, vcpus);
    LiveVmOptions options;
    options.memory_mib = memory_mib;
    options.witness = false;
    auto vm = LiveVm::start(options);
    if (!vm || !(*vm)->guest_started()) {
        std::fprintf(stderr, "bench: %s\n", vm ? "the guest did not start" : vm.error().message.c_str());
        return 1;
    }
    auto ram = (*vm)->ram();
    for (size_t at = size_t{32} << 20; at < ram.size(); at += 4096)
        ram[at] = std::byte{1};

    uint64_t anonymous = 0, files = 0, tables = 0;
    for (unsigned i = 0; i < updates; ++i) {
        const Usage before = usage_of_vm((*vm)->supervisor_pid());
        std::atomic<bool> done{false};
        Usage peak = before;
        std::thread sampler([&] {
            while (!done) {
                const Usage now = usage_of_vm((*vm)->supervisor_pid());
                peak.anonymous_kib = std::max(peak.anonymous_kib, now.anonymous_kib);
                peak.files_kib = std::max(peak.files_kib, now.files_kib);
                peak.tables_kib = std::max(peak.tables_kib, now.tables_kib);
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
            }
        });
        auto record = (*vm)->update(program(i % 2 == 0 ? "liveupdate-vmm-next" : "liveupdate-vmm"));
        done = true;
        sampler.join();
        if (!record || record->outcome != supervisor::Outcome::kCompleted) {
            std::fprintf(
                stderr, "bench: %s\n", record ? record->reason.c_str() : record.error().message.c_str());
            return 1;
        }
        anonymous = std::max(anonymous, peak.anonymous_kib - before.anonymous_kib);
        files = std::max(files, peak.files_kib - before.files_kib);
        tables = std::max(tables, peak.tables_kib - before.tables_kib);
    }
    std::printf("%u MiB, all populated, %u updates: at most %.1f MiB of private memory more, %.1f MiB of "
                "program files mapped "
                "once more, %.1f MiB of page tables\n",
        memory_mib, updates, mib(anonymous), mib(files), mib(tables));
    return 0;
}
