#include "tests/integration/qemu_checks.hpp"

#include <filesystem>

#include "tests/support/qemu_vm.hpp"

namespace liveupdate::tests {
std::string why_no_qemu_guest() {
    if (!std::filesystem::exists(kQemuPath)) return std::string("there is no ") + kQemuPath;
    return {};
}

std::string newer_qemu() {
    const char* path = std::getenv("LIVEUPDATE_TEST_NEWER_QEMU");
    return path == nullptr ? "" : path;
}

LiveVmOptions qemu_guest() {
    LiveVmOptions options;
    options.vmm = kQemuPath;
    options.cmdline = "skew_us=1000";
    // Not every KVM lets IA32_ARCH_CAPABILITIES be set, and QEMU dies of that.
    options.qemu_toml =
        under_tcg() ? "cpu = \"max\"\naccel = \"tcg\"\n" : "cpu = \"host,-arch-capabilities\"\n";
    options.qemu_toml += "machine = \"q35\"\n";
    options.extra_toml = "[policy]\nstop_timeout = \"0s\"\n";
    return options;
}

void check_runs(LiveVm& vm) {
    check_sound(vm, 1);
    CHECK(LiveVm::eventually([&] { return vm.holdings().processes == 2; }));
    CHECK(vm.holdings().zombies == 0);
}

} // namespace liveupdate::tests
