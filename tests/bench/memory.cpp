// Extra host memory during an update: what source, destination and supervisor hold for themselves, added up,
// beside what it was before. Guest RAM is shared memory and not counted; page tables are told apart.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "tests/support/live_vm.hpp"

namespace {

using namespace liveupdate;
using namespace liveupdate::tests;
namespace fs = std::filesystem;

struct Usage {
    uint64_t anonymous_kib = 0; // RssAnon: private to the process
    uint64_t files_kib = 0;     // RssFile: programs and libraries, mostly shared between the processes
    uint64_t tables_kib = 0;    // VmPTE
};

Usage usage_of(const std::string& pid) {
    Usage usage;
    std::ifstream status("/proc/" + pid + "/status");
    for (std::string line; std::getline(status, line);) {
        std::istringstream words(line);
        std::string key;
        uint64_t kib = 0;
        words >> key >> kib;
        if (key == "RssAnon:") usage.anonymous_kib = kib;
        if (key == "RssFile:") usage.files_kib = kib;
        if (key == "VmPTE:") usage.tables_kib = kib;
    }
    return usage;
}

// The supervisor and its children.
Usage usage_of_vm(pid_t supervisor) {
    Usage sum = usage_of(std::to_string(supervisor));
    // A child belongs to the thread that started it.
    std::error_code ignored;
    for (const auto& task :
        fs::directory_iterator("/proc/" + std::to_string(supervisor) + "/task", ignored)) {
        std::ifstream children(task.path() / "children");
        for (std::string pid; children >> pid;) {
            const Usage u = usage_of(pid);
            sum.anonymous_kib += u.anonymous_kib;
            sum.files_kib += u.files_kib;
            sum.tables_kib += u.tables_kib;
        }
    }
    return sum;
}

double mib(uint64_t kib) {
    return static_cast<double>(kib) / 1024;
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app{"Extra host memory during an update"};
    unsigned memory_mib = 256, updates = 10;
    app.add_option("--memory", memory_mib, "MiB");
    app.add_option("--updates", updates);
    CLI11_PARSE(app, argc, argv);
    if (const std::string why = why_no_kvm(); !why.empty()) {
        std::printf("SKIPPED: %s\n", why.c_str());
        return 0;
    }
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
