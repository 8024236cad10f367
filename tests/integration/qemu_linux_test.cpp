// Linux under QEMU, on qcow2 images and a tap, while its QEMU is replaced again and again. What must hold is
// told in tests/linux/README.md. LIVEUPDATE_TEST_UPDATES: how many updates (20). Under TCG where there is no
// /dev/kvm or LIVEUPDATE_TEST_ACCEL=tcg says so.
#include <thread>

#include "tests/integration/checks.hpp"
#include "tests/support/command.hpp"
#include "tests/support/linux_vm.hpp"
#include "tests/support/other_qemu.hpp"
#include "tests/support/qemu_vm.hpp"

namespace liveupdate::tests {
namespace {

using namespace std::chrono_literals;

std::string why_not() {
    if (std::string why = under_tcg() ? why_no_linux_files() : why_no_linux(); !why.empty()) return why;
    if (std::string why = why_no_qemu(); !why.empty()) return why;
    if (run_command({"qemu-img", "--version"}).status != 0)
        return "there is no qemu-img (package qemu-utils)";
    return {};
}

LinuxVmOptions on_qemu() {
    LinuxVmOptions options;
    options.vmm = kQemuPath;
    options.qemu_toml =
        under_tcg() ? "cpu = \"max\"\naccel = \"tcg\"\n" : "cpu = \"host,-arch-capabilities\"\n";
    options.qemu_toml += other_linux() ? "machine = \"q35\"\n" : "machine = \"microvm,rtc=on\"\n";
    if (other_linux()) options.memory_mib = 256; // a distribution's kernel is larger
    options.disk_toml = "format = \"qcow2\"\n";
    options.disks = 1;
    // QEMU sets a guest's TSC back to where it stood when the guest was stopped, and not kvmclock.
    options.work = "lu.clock=1 lu.step_us=10000000";
    const std::string why = NetNamespace::why_none();
    if (!why.empty()) std::printf("SKIPPED: the guest's network: %s\n", why.c_str());
    options.network = why.empty() ? Network::kTap : Network::kNone;
    return options;
}

void update_often(LinuxVm& vm, const std::string& other, unsigned count) {
    for (unsigned n = 0; n < count; ++n) {
        const auto next = std::chrono::steady_clock::now() + 500ms;
        const auto record = vm.vm().update(n % 2 == 0 ? other : kQemuPath);
        REQUIRE_MESSAGE(record, "update ", n, ": ", record.error().message);
        REQUIRE_MESSAGE(record->outcome == supervisor::Outcome::kCompleted, "update ", n, ": ",
            to_string(record->outcome), ": ", record->reason);
        std::this_thread::sleep_until(next);
    }
}

TEST_CASE("Linux in QEMU loses no byte on qcow2 images and in a TCP stream, however often it is updated") {
    if (const std::string why = why_not(); !why.empty()) {
        std::printf("SKIPPED: %s\n", why.c_str());
        return;
    }
    const OtherQemu other;
    const LinuxVmOptions options = on_qemu();
    auto started = LinuxVm::start(options);
    if (!started) FAIL(started.error().message);
    LinuxVm& vm = **started;
    update_often(vm, other.path(), number_from("LIVEUPDATE_TEST_UPDATES", 20));
    const bool ended = vm.finish();
    for (const auto& line : vm.lines("result"))
        std::printf("%s\n", line.c_str());
    for (const auto& line : vm.lines("error"))
        FAIL_CHECK(line);
    REQUIRE_MESSAGE(ended, "the guest did not end; its console:\n", vm.console());
    CHECK(figures_of(vm.lines("summary")[0])["errors"] == 0);
    for (unsigned disk = 0; disk < options.disks + options.file_systems; ++disk)
        CHECK_MESSAGE(vm.check_image(disk).empty(), "image ", disk, ": ", vm.check_image(disk));
    CHECK_MESSAGE(vm.check_disk(0).empty(), vm.check_disk(0));
    CHECK_MESSAGE(vm.check_file_system(0).empty(), vm.check_file_system(0));
    if (options.network == Network::kNone) return;
    const auto own = vm.lines("result tcp");
    REQUIRE(own.size() == 1);
    Figures guest = figures_of(own[0]), peer = vm.peer();
    CHECK(peer["tcp_errors"] == 0);
    CHECK(peer["tcp_received"] == guest["sent"]);
    CHECK(peer["tcp_sent"] == guest["received"]);
    CHECK(guest["sent"] > 0);
    CHECK(guest["received"] > 0);
}

} // namespace
} // namespace liveupdate::tests
