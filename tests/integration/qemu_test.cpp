// The same guest images on QEMU, so that both VMMs can be measured with the same guest.
#include "tests/integration/checks.hpp"
#include "tests/support/qemu_vm.hpp"

namespace liveupdate::tests {
namespace {

using ::tests::guests::read_field;

std::unique_ptr<QemuVm> started_on_qemu(const std::string& image, const std::string& cmdline) {
    QemuOptions options;
    options.guest = image;
    options.cmdline = cmdline;
    options.vcpus = 2;
    auto vm = QemuVm::start(options);
    REQUIRE_MESSAGE(vm, vm.error().message);
    REQUIRE((*vm)->guest_started());
    return std::move(*vm);
}

void check_guest(const QemuVm& vm) {
    for (unsigned v = 0; v < 2; ++v) {
        const auto& slot = vm.report().vcpus[v];
        const uint64_t before = read_field(slot.counter);
        CHECK(LiveVm::eventually([&] { return read_field(slot.counter) > before + 1000; }));
    }
    const auto& header = vm.report().header;
    CHECK_MESSAGE(read_field(header.errors) == 0, "first error ", read_field(header.first_error));
}

bool no_qemu() {
    const std::string why = why_no_qemu();
    if (!why.empty()) std::printf("SKIPPED: %s\n", why.c_str());
    return !why.empty();
}

TEST_CASE("the clock guest runs on QEMU, and through QEMU's own update") {
    NEEDS_KVM();
    if (no_qemu()) return;
    const auto vm = started_on_qemu("clock.elf", "skew_us=1000");
    check_guest(*vm);
    const auto prepared = vm->prepare();
    REQUIRE_MESSAGE(prepared, prepared.error().message);
    const auto switched = vm->switch_over();
    REQUIRE_MESSAGE(switched, switched.error().message);
    vm->finish();
    check_guest(*vm);
}

TEST_CASE("the timer guest runs on QEMU") {
    NEEDS_KVM();
    if (no_qemu()) return;
    const auto vm = started_on_qemu("timer.elf", "");
    check_guest(*vm);
    for (unsigned v = 0; v < 2; ++v)
        CHECK(LiveVm::eventually([&] { return read_field(vm->report().vcpus[v].timer.interrupts) > 100; }));
}

} // namespace
} // namespace liveupdate::tests
