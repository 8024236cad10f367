#include "tests/integration/checks.hpp"

#include <cstdlib>
#include <thread>
#include <utility>

namespace liveupdate::tests {

using supervisor::Outcome;
using ::tests::guests::read_field;

unsigned number_from(const char* variable, unsigned otherwise) {
    const char* text = std::getenv(variable);
    return text == nullptr || *text == '\0' ? otherwise
                                            : static_cast<unsigned>(std::strtoul(text, nullptr, 10));
}

std::unique_ptr<LiveVm> started(LiveVmOptions options) {
    auto vm = LiveVm::start(std::move(options));
    REQUIRE_MESSAGE(vm, vm.error().message);
    REQUIRE((*vm)->guest_started());
    return std::move(*vm);
}

std::string first_error_of(const LiveVm& vm) {
    const auto& header = vm.report().header;
    const auto number = [](const uint64_t& field) { return std::to_string(read_field(field)); };
    return "the guest's first error is " + number(header.first_error) + " with " +
           number(header.first_error_args[0]) + ", " + number(header.first_error_args[1]) + " on vCPU " +
           number(header.first_error_vcpu) + ", of " + number(header.errors);
}

std::string turn(unsigned n) {
    return program(n % 2 == 0 ? "liveupdate-vmm-next" : "liveupdate-vmm");
}

void update_in_turn(LiveVm& vm, unsigned first, unsigned count) {
    for (unsigned n = first; n < first + count; ++n) {
        const auto record = vm.update(turn(n));
        REQUIRE_MESSAGE(record, "update ", n, ": ", record.error().message);
        REQUIRE_MESSAGE(record->outcome == Outcome::kCompleted, "update ", n, ": ",
            to_string(record->outcome), ": ", record->reason);
        REQUIRE_MESSAGE(
            read_field(vm.report().header.errors) == 0, "after update ", n, ": ", first_error_of(vm));
    }
}

void check_never_two_owners(const LiveVm& vm, unsigned vcpus) {
    if (vm.witness() == nullptr) return;
    for (unsigned v = 0; v < vcpus; ++v)
        CHECK_MESSAGE(vm.witness()[v].violations.load() == 0, "vCPU ", v);
}

void check_sound(LiveVm& vm, unsigned vcpus) {
    CHECK_MESSAGE(read_field(vm.report().header.errors) == 0, first_error_of(vm));
    check_never_two_owners(vm, vcpus);
    CHECK(vm.baton().read().state == handoff::BatonState::kHeld);
    const auto status = vm.status();
    CHECK_MESSAGE(status.value("state", "") == "running", status.dump());
    CHECK(vm.goes_on());
    if (vm.witness() == nullptr) return;
    const uint64_t epoch = vm.baton().read().epoch;
    for (unsigned v = 0; v < vcpus; ++v)
        CHECK(LiveVm::eventually([&] { return vm.witness()[v].epoch.load() == epoch; }));
}

Holdings holdings_at_rest(LiveVm& vm) {
    Holdings now = vm.holdings();
    const bool at_rest = LiveVm::eventually([&] {
        const Holdings before = std::exchange(now, vm.holdings());
        std::this_thread::sleep_for(std::chrono::milliseconds(200));
        return before == now && vm.holdings() == now;
    });
    CHECK_MESSAGE(at_rest, "what the VM's processes hold changes all the time");
    return now;
}

void check_nothing_leaked(LiveVm& vm, const Holdings& before) {
    Holdings now;
    const bool same = LiveVm::eventually(
        [&] {
            now = vm.holdings();
            return now == before;
        },
        std::chrono::seconds(10));
    CHECK_MESSAGE(same, difference(before, now));
}

} // namespace liveupdate::tests
