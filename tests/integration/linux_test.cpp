// Linux under updates, with disks, a network and timers that are checked from inside and outside. What must
// hold is told in tests/linux/README.md. LIVEUPDATE_TEST_UPDATES: how many updates (20).
#include <thread>

#include "tests/integration/checks.hpp"
#include "tests/support/linux_vm.hpp"
#include "tests/support/loop_device.hpp"

namespace liveupdate::tests {
namespace {

using namespace std::chrono_literals;

#define NEEDS_LINUX()                                                                                        \
    if (const std::string why = why_no_linux(); !why.empty()) {                                              \
        std::printf("SKIPPED: %s\n", why.c_str());                                                           \
        return;                                                                                              \
    }

// A tap where there may be one; a test says loudly when it goes without.
Network network() {
    const std::string why = NetNamespace::why_none();
    if (why.empty()) return Network::kTap;
    std::printf("SKIPPED: the guest's network: %s\n", why.c_str());
    return Network::kNone;
}

std::unique_ptr<LinuxVm> working(LinuxVmOptions options) {
    auto vm = LinuxVm::start(std::move(options));
    if (!vm) FAIL(vm.error().message);
    return std::move(*vm);
}

// One update each half second, there and back between two builds.
void update_often(LinuxVm& vm, unsigned count) {
    for (unsigned n = 0; n < count; ++n) {
        const auto next = std::chrono::steady_clock::now() + 500ms;
        const auto record = vm.vm().update(turn(n));
        REQUIRE_MESSAGE(record, "update ", n, ": ", record.error().message);
        REQUIRE_MESSAGE(record->outcome == supervisor::Outcome::kCompleted, "update ", n, ": ",
            to_string(record->outcome), ": ", record->reason);
        std::this_thread::sleep_until(next);
    }
}

// The peer's figures beside the guest's own. A tap with several queues sends a flow through the one that the
// guest has used last, without waiting for what still lies in another (tun_flow_update() in Linux), so that
// packets keep their order only where there is one queue.
void check_network(const LinuxVm& vm, Figures peer, unsigned queues) {
    const auto own = vm.lines("result tcp");
    REQUIRE(own.size() == 1);
    Figures guest = figures_of(own[0]);
    CHECK(peer["tcp_errors"] == 0);
    CHECK(peer["tcp_received"] == guest["sent"]);
    CHECK(peer["tcp_sent"] == guest["received"]);
    CHECK(guest["sent"] > 0);
    CHECK(guest["received"] > 0);
    CHECK(peer["ping_sent"] > 0);
    CHECK(peer["ping_answered"] == peer["ping_sent"]);
    CHECK(peer["ping_doubled"] == 0);
    if (queues == 1)
        CHECK(peer["ping_reordered"] == 0);
    else if (peer["ping_reordered"] > 0)
        std::printf("%u queues: %llu pings out of their order\n", queues,
            static_cast<unsigned long long>(peer["ping_reordered"]));
    const auto& tap = vm.counters();
    REQUIRE(tap);
    CHECK(tap->receive_errors + tap->receive_dropped + tap->send_errors == 0);
    CHECK(tap->send_dropped == 0); // on the way to the guest: the tap's queue was full, or nobody had it
    std::printf("tap: %llu packets to the guest, %llu from it\n", static_cast<unsigned long long>(tap->sent),
        static_cast<unsigned long long>(tap->received));
}

// Every queue of each device has been in use.
void check_queues(const LinuxVm& vm, const LinuxVmOptions& options) {
    for (const auto& line : vm.lines("result disk"))
        CHECK_MESSAGE(figures_of(line)["queues"] == options.vcpus, line);
    if (options.network == Network::kNone) return;
    Figures guest = figures_of(vm.lines("result tcp").at(0));
    for (unsigned queue = 0; queue < options.net_queues; ++queue)
        for (const char* direction : {"rx", "tx"})
            CHECK_MESSAGE(
                guest[direction + std::to_string(queue)] > 0, direction, queue, " has carried no packet");
}

void check_linux(const LinuxVmOptions& options) {
    const bool net = options.network == Network::kTap;
    const auto vm = working(options);
    if (net) vm->ping();
    update_often(*vm, number_from("LIVEUPDATE_TEST_UPDATES", 20));
    const bool ended = vm->finish();
    for (const auto& line : vm->lines("result"))
        std::printf("%s\n", line.c_str());
    for (const auto& line : vm->lines("error"))
        FAIL_CHECK(line);
    REQUIRE_MESSAGE(ended, "the guest did not end; its console:\n", vm->console());
    CHECK(figures_of(vm->lines("summary")[0])["errors"] == 0);
    for (unsigned disk = 0; disk < options.disks; ++disk)
        CHECK_MESSAGE(vm->check_disk(disk).empty(), "disk ", disk, ": ", vm->check_disk(disk));
    for (unsigned number = 0; number < options.file_systems; ++number)
        CHECK_MESSAGE(vm->check_file_system(number).empty(), vm->check_file_system(number));
    if (net) check_network(*vm, vm->peer(), options.net_queues);
    check_queues(*vm, options);
}

LinuxVmOptions with_all_devices(unsigned vcpus) {
    LinuxVmOptions options;
    options.vcpus = vcpus;
    options.network = network();
    return options;
}

LinuxVmOptions without_devices(unsigned vcpus) {
    LinuxVmOptions options;
    options.vcpus = vcpus;
    options.disks = options.file_systems = 0;
    options.network = Network::kNone;
    return options;
}

TEST_CASE("Linux with 1 vCPU keeps its clocks, timers and registers, however often it is updated") {
    NEEDS_LINUX();
    check_linux(without_devices(1));
}

TEST_CASE("Linux with 2 vCPUs keeps its clocks, timers and registers, however often it is updated") {
    NEEDS_LINUX();
    check_linux(without_devices(2));
}

TEST_CASE("Linux with 1 vCPU loses no byte on disks and network, however often it is updated") {
    NEEDS_LINUX();
    check_linux(with_all_devices(1));
}

TEST_CASE("Linux with 2 vCPUs loses no byte on disks and network of 2 queues, however often it is updated") {
    NEEDS_LINUX();
    LinuxVmOptions options = with_all_devices(2);
    options.net_queues = 2;
    options.work += " lu.wander=1";
    std::unique_ptr<LoopDevice> device; // of the first disk; the others are files
    if (const std::string why = LoopDevice::why_none(); !why.empty()) {
        std::printf("SKIPPED: a block device as disk: %s\n", why.c_str());
    } else {
        auto made = LoopDevice::make(uint64_t{options.disk_mib} << 20);
        REQUIRE_MESSAGE(made, made.error().message);
        device = std::move(*made);
        options.given_disks = {device->path()};
    }
    check_linux(options);
}

} // namespace
} // namespace liveupdate::tests
