// What I/O costs through our VMM, and what an update costs I/O; QEMU beside it in the same run.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <functional>
#include <map>

#include "tests/bench/io.hpp"
#include "tests/support/live_vm.hpp"
#include "tests/support/slow_disk.hpp"

namespace {

using namespace liveupdate;
using namespace liveupdate::tests;

const std::vector<std::string> kParts = {"driver", "network_driver", "disk", "network", "driver_recovery",
    "network_driver_recovery", "disk_recovery", "network_recovery", "slow_disk"};

// What a part needs and this machine has not.
std::string why_not(const std::string& part) {
    std::vector<std::string> reasons;
    if (part == "slow_disk") reasons.push_back(SlowDisk::why_none());
    if (part.find("recovery") == std::string::npos) reasons.push_back(why_no_qemu());
    if (part.starts_with("disk") || part.starts_with("driver")) reasons.push_back(LoopDevice::why_none());
    if (part.starts_with("network")) reasons.push_back(NetNamespace::why_none());
    if (part.find("driver") == std::string::npos && part != "slow_disk") reasons.push_back(why_no_linux());
    for (const std::string& reason : reasons)
        if (!reason.empty()) return reason;
    return {};
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app{"Disk and network through our VMM, across updates, and beside QEMU"};
    unsigned updates = 20, rounds = 3, vcpus = 1;
    std::vector<std::string> wanted;
    app.add_option("part", wanted, "which parts; all of them without one")->check(CLI::IsMember(kParts));
    app.add_option("--rounds", rounds, "by turns with QEMU")->check(CLI::Range(1u, 1000u));
    app.add_option("--vcpus", vcpus, "of Linux guests");
    app.add_option("--updates", updates, "of each kind")->check(CLI::Range(2u, 1000u));
    CLI11_PARSE(app, argc, argv);
    if (const std::string why = why_no_kvm(); !why.empty()) {
        std::printf("SKIPPED: %s\n", why.c_str());
        return 0;
    }
    const std::map<std::string, std::function<Result<void>()>> run = {
        {"driver", [&] { return bench_disk_driver(rounds); }},
        {"network_driver", [&] { return bench_network_driver(rounds); }},
        {"disk", [&] { return bench_throughput(Load::kDisk, rounds, vcpus); }},
        {"network", [&] { return bench_throughput(Load::kNetwork, rounds, vcpus); }},
        {"driver_recovery", [&] { return bench_driver_recovery(updates); }},
        {"network_driver_recovery", [&] { return bench_network_driver_recovery(updates); }},
        {"disk_recovery", [&] { return bench_recovery(Load::kDisk, updates, vcpus); }},
        {"network_recovery", [&] { return bench_recovery(Load::kNetwork, updates, vcpus); }},
        {"slow_disk", [&] { return bench_slow_disk(updates); }},
    };
    for (const auto& part : wanted.empty() ? kParts : wanted) {
        if (const std::string why = why_not(part); !why.empty()) {
            std::printf("SKIPPED: %s: %s\n", part.c_str(), why.c_str());
            continue;
        }
        if (const auto done = run.at(part)(); !done) {
            std::fprintf(stderr, "bench: %s: %s\n", part.c_str(), done.error().message.c_str());
            return 1;
        }
    }
    return 0;
}
