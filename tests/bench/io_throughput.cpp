// Throughput through our VMM and through QEMU by turns: the same guest, back end, machine and number of
// vCPUs.
#include <chrono>
#include <thread>

#include "tests/bench/gaps.hpp"
#include "tests/bench/io.hpp"
#include "tests/bench/io_guests.hpp"

namespace liveupdate::tests {
namespace {

using namespace std::chrono_literals;

constexpr auto kSettle = 1s; // what a start leaves behind belongs to it
constexpr unsigned kStretches = 6;
constexpr double kStretchSeconds = 0.5;

struct Rates {
    std::vector<double> ours, qemus;

    void print(const char* what, const char* unit = "MB/s") const {
        std::printf("%s\n", what);
        print_row("liveupdate", ours, unit);
        print_row("QEMU, microvm", qemus, unit);
        std::printf(
            "  ratio of the medians, ours to QEMU's: %.2f\n", percentile(ours, 0.5) / percentile(qemus, 0.5));
    }
};

template <typename Start>
Result<void> measure(Start start, std::vector<double>& into) {
    TRY_ASSIGN(const auto guest, start());
    std::this_thread::sleep_for(kSettle);
    for (const double rate : rates(guest->meter(), kStretches, kStretchSeconds))
        into.push_back(rate);
    return guest->check();
}

} // namespace

Result<void> bench_disk_driver(unsigned rounds) {
    Rates seen;
    for (unsigned round = 0; round < rounds; ++round)
        for (const Runner runner : {Runner::kSupervisor, Runner::kQemu})
            TRY(measure(
                [&] { return DiskGuest::start(runner); }, runner == Runner::kQemu ? seen.qemus : seen.ours));
    seen.print("disk: 32 requests of 4 KiB in flight, a driver in ring 3 that polls, loop device, 1 vCPU");
    return {};
}

Result<void> bench_throughput(Load load, unsigned rounds, unsigned vcpus) {
    Rates seen;
    for (unsigned round = 0; round < rounds; ++round)
        for (const Runner runner : {Runner::kSupervisor, Runner::kQemu})
            TRY(measure([&] { return LinuxGuest::start(load, runner, vcpus); },
                runner == Runner::kQemu ? seen.qemus : seen.ours));
    const std::string what = load == Load::kDisk
                                 ? "disk: Linux, 16 requests of up to 64 KiB in flight, loop device, "
                                 : "network: Linux, TCP both ways at once, tap, ";
    seen.print((what + std::to_string(vcpus) + " vCPU").c_str());
    return {};
}

Result<void> bench_network_driver(unsigned rounds) {
    for (const unsigned payload : {64u, 1472u}) {
        Rates seen;
        for (unsigned round = 0; round < rounds; ++round)
            for (const Runner runner : {Runner::kSupervisor, Runner::kQemu})
                TRY(measure(
                    [&] { return NetworkGuest::start(runner, payload, NetworkGuest::Purpose::kThroughput); },
                    runner == Runner::kQemu ? seen.qemus : seen.ours));
        const std::string what = "network: 64 echo requests of " + std::to_string(payload) +
                                 " bytes in flight to the host's kernel, a driver in ring 3 that polls, tap, "
                                 "1 vCPU; packets both ways";
        for (auto* rates : {&seen.ours, &seen.qemus})
            for (double& rate : *rates)
                rate *= 1e3;
        seen.print(what.c_str(), "thousand/s");
    }
    return {};
}

} // namespace liveupdate::tests
