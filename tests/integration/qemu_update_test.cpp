// QEMU guests as VMs of liveupdate: updates there and back between two QEMU binaries, and kill -9 of
// everybody in every phase. What is refused: qemu_refusal_test.cpp.
#include <signal.h>
#include <x86intrin.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <utility>

#include "handoff/phase.hpp"
#include "tests/bench/gaps.hpp"
#include "tests/integration/qemu_checks.hpp"

namespace liveupdate::tests {
namespace {

using handoff::Party;
using handoff::Phase;
using supervisor::Outcome;
namespace fs = std::filesystem;

constexpr const char* kQemu = kQemuPath;

TEST_CASE("a QEMU guest starts, tells its state, and stops") {
    NEEDS_QEMU();
    const auto vm = started(qemu_guest());
    const auto status = vm->status();
    CHECK(status["state"] == "running");
    CHECK(status["driver"] == "qemu");
    CHECK(status["vmm"]["binary"] == kQemu);
    CHECK(status["outdated"] == false);
    CHECK(vm->call({{"command", "stop"}}).has_value());
    CHECK(vm->await_supervisor_end() == 0);
    CHECK(processes_of(vm->directory()).empty());
}

TEST_CASE("a QEMU guest is updated there and back between two binaries") {
    NEEDS_QEMU();
    const OtherQemu other;
    const auto vm = started(qemu_guest());
    Holdings before;
    for (unsigned n = 0; n < 10; ++n) {
        const auto record = vm->update(n % 2 == 0 ? other.path() : kQemu);
        REQUIRE_MESSAGE(record, record.error().message);
        REQUIRE_MESSAGE(record->outcome == Outcome::kCompleted, record->reason);
        CHECK(record->from.build_id != record->to.build_id);
        CHECK(record->blackout_us.has_value());
        CHECK(record->notes.empty());
        check_runs(*vm);
        if (n == 1) before = holdings_at_rest(*vm);
    }
    check_nothing_leaked(*vm, before);
    CHECK(vm->baton().read().epoch > 10);
}

// Host TSC less guest TSC, in ticks: the least of many looks, at a guest that has been seen to run meanwhile.
int64_t tsc_lag(const LiveVm& vm) {
    constexpr unsigned kLooks = 20'000;
    int64_t least = INT64_MAX;
    unsigned looks = 0;
    uint64_t last = 0;
    const auto look_often = [&] {
        for (unsigned i = 0; i < kLooks; ++i) {
            const uint64_t guest = guest_now(vm.report());
            least = std::min(least, static_cast<int64_t>(__rdtsc() - guest));
            if (std::exchange(last, guest) != guest) ++looks;
        }
        return looks > kLooks;
    };
    CHECK(LiveVm::eventually(look_often, std::chrono::minutes(2)));
    return least;
}

TEST_CASE("the guest stands for no less than what the record tells, by the host's clock") {
    NEEDS_QEMU();
    auto options = qemu_guest();
    if (options.qemu_toml.find("tcg") != std::string::npos) {
        std::printf("SKIPPED: under TCG the guest's clock is not the host's\n");
        return;
    }
    options.cmdline += " gap_us=50";
    const auto vm = started(options);
    for (unsigned n = 0; n < 3; ++n) {
        const int64_t lag = tsc_lag(*vm);
        const uint64_t from = guest_now(vm->report());
        const auto record = vm->update(kQemu);
        REQUIRE_MESSAGE(record, record.error().message);
        REQUIRE_MESSAGE(record->outcome == Outcome::kCompleted, record->reason);
        // QEMU sets the guest's TSC back, so that the guest sees but a part of it by itself.
        const int64_t hidden = tsc_lag(*vm) - lag;
        uint64_t seen = 0;
        for (const auto& gap : gaps_since(vm->report(), 0, from))
            seen = std::max(seen, gap.end_tsc - gap.start_tsc);
        const double per_ms = static_cast<double>(::tests::guests::read_field(vm->report().header.tsc_khz));
        const double guest_ms = (static_cast<double>(hidden) + static_cast<double>(seen)) / per_ms;
        REQUIRE(record->blackout_us.has_value());
        const double told_ms = static_cast<double>(*record->blackout_us) / 1000;
        CHECK(record->vmm_downtime_us.has_value());
        std::printf(
            "the guest stood for %.2f ms, of which its own clock shows %.2f ms; told: %.2f ms, QEMU's own "
            "figure: %.0f ms\n",
            guest_ms, static_cast<double>(seen) / per_ms, told_ms,
            static_cast<double>(record->vmm_downtime_us.value_or(0)) / 1000);
        // Two clocks: QEMU's stamps are of the day's time.
        CHECK(guest_ms + 0.1 >= told_ms);
    }
}

TEST_CASE("plan and update say that the new QEMU deprecates the guest's machine type") {
    NEEDS_QEMU();
    auto options = qemu_guest();
    const std::string machine = "machine = \"q35\"", old = "pc-i440fx-1.7";
    options.qemu_toml.replace(options.qemu_toml.find(machine), machine.size(), "machine = \"" + old + "\"");
    const auto vm = LiveVm::start(options); // a machine this old starts no kernel, and runs all the same
    REQUIRE_MESSAGE(vm, vm.error().message);
    for (const char* kind : {"plan", "update"}) {
        const auto record = (*vm)->update(kQemu, {{"kind", kind}});
        REQUIRE_MESSAGE(record, record.error().message);
        REQUIRE_MESSAGE(record->reason.empty(), record->reason);
        REQUIRE(record->notes.size() == 1);
        CHECK(record->notes[0].starts_with("the machine type '" + old + "' is deprecated in QEMU 7."));
    }
}

TEST_CASE("a rollback goes back to the QEMU that ran before") {
    NEEDS_QEMU();
    const OtherQemu other;
    const auto vm = started(qemu_guest());
    const std::string first = vm->build_id();
    REQUIRE(vm->update(other.path())->outcome == Outcome::kCompleted);
    CHECK(vm->build_id() != first);
    const auto record = vm->call({{"command", "update"}, {"kind", "rollback"}});
    REQUIRE_MESSAGE(record, record.error().message);
    CHECK((*record)["outcome"] == "completed");
    CHECK(vm->build_id() == first);
    check_runs(*vm);
}

TEST_CASE("a plan leaves the guest where it is") {
    NEEDS_QEMU();
    const OtherQemu other;
    const auto vm = started(qemu_guest());
    const pid_t before = vm->vmm_pid();
    const auto record = vm->update(other.path(), {{"kind", "plan"}});
    REQUIRE_MESSAGE(record, record.error().message);
    CHECK_MESSAGE(record->outcome == Outcome::kPlanned, record->reason);
    CHECK(record->to.version == record->from.version);
    CHECK(vm->vmm_pid() == before);
    check_runs(*vm);
}

TEST_CASE("a machine type is pinned by the first start, and kept") {
    NEEDS_QEMU();
    const auto vm = started(qemu_guest());
    std::ifstream file(vm->directory() + "/state/vm/qemu-machine.json");
    const auto pin = nlohmann::json::parse(file);
    CHECK(pin["asked"] == "q35");
    CHECK(pin["pinned"].get<std::string>().starts_with("pc-q35-"));
    std::ifstream line("/proc/" + std::to_string(vm->vmm_pid()) + "/cmdline");
    const std::string words((std::istreambuf_iterator<char>(line)), {});
    CHECK(words.find(pin["pinned"].get<std::string>()) != std::string::npos);
}

nlohmann::json fault(Phase phase, Party victim, const char* action) {
    return {{"fault", {{"phase", to_string(phase)}, {"victim", to_string(victim)}, {"action", action}}}};
}

constexpr Phase kStruck[] = {Phase::kNegotiating, Phase::kPreparing, Phase::kPausing, Phase::kTransferring,
    Phase::kCommitting, Phase::kProbation};

bool before_word(Phase phase) {
    return handoff::row(phase).before_commit && phase != Phase::kCommitting;
}

TEST_CASE("a destination that is killed before it runs the guest leaves it to the source") {
    NEEDS_QEMU();
    const OtherQemu other;
    const auto vm = started(qemu_guest());
    const pid_t source = vm->vmm_pid();
    for (const Phase phase : kStruck) {
        if (!handoff::row(phase).before_commit) continue;
        CAPTURE(to_string(phase));
        const auto record = vm->update(other.path(), fault(phase, Party::kDestination, "kill"));
        REQUIRE_MESSAGE(record, record.error().message);
        const bool paused = phase == Phase::kTransferring || phase == Phase::kCommitting;
        CHECK_MESSAGE((record->outcome == Outcome::kRolledBack) == paused, to_string(record->outcome));
        CHECK_MESSAGE(record->reason.find("signal 9") != std::string::npos, record->reason);
        CHECK(vm->vmm_pid() == source);
        check_runs(*vm);
    }
    REQUIRE(vm->update(other.path())->outcome == Outcome::kCompleted);
}

TEST_CASE("a failure before the commit leaves the guest in the source, with a reason") {
    NEEDS_QEMU();
    const OtherQemu other;
    const auto vm = started(qemu_guest());
    const pid_t source = vm->vmm_pid();
    for (const Phase phase : kStruck) {
        if (!handoff::row(phase).before_commit) continue;
        CAPTURE(to_string(phase));
        const auto record = vm->update(other.path(), fault(phase, Party::kDestination, "fail"));
        REQUIRE_MESSAGE(record, record.error().message);
        CHECK_MESSAGE(
            record->reason.find("a fault asked for by a test") != std::string::npos, record->reason);
        CHECK(vm->vmm_pid() == source);
        check_runs(*vm);
    }
}

TEST_CASE("a destination that is killed when it has run the guest loses it, in words") {
    NEEDS_QEMU();
    const auto vm = started(qemu_guest());
    const auto record = vm->update(kQemu, fault(Phase::kProbation, Party::kDestination, "kill"));
    REQUIRE_MESSAGE(record, record.error().message);
    CHECK(record->outcome == Outcome::kLost);
    CHECK_MESSAGE(record->reason.find("signal 9") != std::string::npos, record->reason);
    CHECK(vm->status()["state"] == "lost");
    CHECK(processes_of(vm->directory()).size() == 1);
}

TEST_CASE(
    "a source that is killed once all is with the destination is not missed; before, the guest is lost") {
    NEEDS_QEMU();
    for (const Phase phase : kStruck) {
        CAPTURE(to_string(phase));
        const auto vm = started(qemu_guest());
        const pid_t source = vm->vmm_pid();
        const auto record = vm->update(kQemu, fault(phase, Party::kSource, "kill"));
        REQUIRE_MESSAGE(record, record.error().message);
        const bool all_there =
            phase == Phase::kTransferring || phase == Phase::kCommitting || phase == Phase::kProbation;
        CHECK_MESSAGE(record->outcome == (all_there ? Outcome::kCompleted : Outcome::kLost), record->reason);
        CHECK(::kill(source, 0) != 0);
        if (all_there)
            check_runs(*vm);
        else
            CHECK(vm->status()["state"] == "lost");
    }
}

TEST_CASE("a supervisor that is killed costs the guest nothing, and its successor reads whose it is") {
    NEEDS_QEMU();
    const OtherQemu other;
    const auto vm = started(qemu_guest());
    for (const Phase phase : kStruck) {
        CAPTURE(to_string(phase));
        const pid_t source = vm->vmm_pid();
        const std::string next = vm->status()["vmm"]["binary"] == kQemu ? other.path() : kQemu;
        CHECK(!vm->update(next, fault(phase, Party::kSupervisor, "kill")));
        REQUIRE(LiveVm::eventually([&] { return !vm->supervisor_alive(); }));
        const auto restarted = vm->start_supervisor();
        REQUIRE_MESSAGE(restarted, restarted.error().message);
        CHECK((vm->vmm_pid() == source) == before_word(phase));
        check_runs(*vm);
        CHECK((::kill(source, 0) == 0) == before_word(phase));
        // And it can be updated again.
        REQUIRE(vm->update(next)->outcome == Outcome::kCompleted);
        check_runs(*vm);
    }
}

// How many of its descriptors lead there.
long descriptors_at(pid_t pid, const std::string& path) {
    const fs::directory_iterator all("/proc/" + std::to_string(pid) + "/fd");
    std::error_code ignored;
    return std::count_if(begin(all), end(all),
        [&](const auto& entry) { return fs::read_symlink(entry.path(), ignored) == path; });
}

TEST_CASE("a supervisor that follows another one hands the console on, and not what has taken its number") {
    NEEDS_QEMU();
    const OtherQemu other;
    const TemporaryFolder folder;
    const std::string console = folder.at("console");
    auto options = qemu_guest();
    options.console_toml = "type = \"file\"\npath = \"" + console + "\"\n";
    const auto vm = started(options);
    const long before = descriptors_at(vm->vmm_pid(), console);
    CHECK(before > 1); // QEMU's own, and one to be handed on
    CHECK(!vm->update(other.path(), fault(Phase::kNegotiating, Party::kSupervisor, "kill")));
    REQUIRE(LiveVm::eventually([&] { return !vm->supervisor_alive(); }));
    REQUIRE(vm->start_supervisor().has_value());
    REQUIRE(vm->update(other.path())->outcome == Outcome::kCompleted);
    CHECK(descriptors_at(vm->vmm_pid(), console) == before);
    check_runs(*vm);
}

TEST_CASE(
    "a QEMU that dies on its own is told as lost, and the guest started anew where the policy says so") {
    NEEDS_QEMU();
    auto options = qemu_guest();
    options.extra_toml = "[policy]\nstop_timeout = \"0s\"\non_lost = \"restart\"\n";
    const auto vm = started(options);
    const pid_t first = vm->vmm_pid();
    ::kill(first, SIGKILL);
    REQUIRE(LiveVm::eventually([&] {
        const auto status = vm->status();
        return status.value("state", "") == "running" && vm->vmm_pid() != first;
    }));
    REQUIRE(vm->map_guest());
    CHECK(vm->guest_started());
    check_runs(*vm);
}

} // namespace
} // namespace liveupdate::tests
