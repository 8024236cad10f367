// Each way by which a QEMU guest can be moved: chosen, asked for, refused; and the guest of private RAM.
#include <signal.h>

#include <fstream>

#include "handoff/phase.hpp"
#include "tests/integration/qemu_checks.hpp"
#include "tests/integration/qemu_monitor.hpp"
#include "tests/support/memory_use.hpp"

namespace liveupdate::tests {
namespace {

using handoff::Party;
using handoff::Phase;
using supervisor::Outcome;
using ::tests::guests::read_field;

// Verifies and rewrites all of its RAM again and again.
LiveVmOptions private_guest() {
    LiveVmOptions options = qemu_guest();
    options.guest = "pattern.elf";
    options.cmdline = "touch=4096";
    options.backing = "private";
    options.memory_mib = 128;
    return options;
}

nlohmann::json by(const char* way) {
    return {{"way", way}};
}

nlohmann::json fault(Phase phase, Party victim, const char* action) {
    return {{"fault", {{"phase", to_string(phase)}, {"victim", to_string(victim)}, {"action", action}}}};
}

// The guest has verified all of its RAM once more, from now on.
void check_ram(LiveVm& vm) {
    const auto passes = [&] { return read_field(vm.report().vcpus[0].pattern.passes); };
    const uint64_t before = passes();
    CHECK(LiveVm::eventually([&] { return passes() > before + 2; }, std::chrono::seconds(60)));
    CHECK_MESSAGE(read_field(vm.report().header.errors) == 0, first_error_of(vm));
}

TEST_CASE("a guest of shared RAM is moved by x-ignore-shared, and a plan says so") {
    NEEDS_QEMU();
    const auto vm = started(qemu_guest());
    const auto plan = vm->update(kQemuPath, {{"kind", "plan"}});
    REQUIRE_MESSAGE(plan, plan.error().message);
    CHECK_MESSAGE(plan->outcome == Outcome::kPlanned, plan->reason);
    CHECK(plan->way == "x-ignore-shared");
    CHECK(plan->way_why.find("shared memory") != std::string::npos);
    const auto record = vm->update(kQemuPath, by("x-ignore-shared"));
    REQUIRE_MESSAGE(record, record.error().message);
    CHECK_MESSAGE(record->outcome == Outcome::kCompleted, record->reason);
    CHECK(record->way == "x-ignore-shared");
}

void check_refused(
    LiveVm& vm, const char* way, const std::string& words, const std::string& binary = kQemuPath) {
    const pid_t before = vm.vmm_pid();
    const auto record = vm.update(binary, by(way));
    REQUIRE_MESSAGE(record, record.error().message);
    CHECK(record->outcome == Outcome::kRefused);
    CHECK_MESSAGE(record->reason.find(words) != std::string::npos, record->reason);
    CHECK(vm.vmm_pid() == before);
    check_runs(vm);
}

TEST_CASE("a way that does not fit the guest is refused before it is touched") {
    NEEDS_QEMU();
    const auto shared = started(qemu_guest());
    check_refused(*shared, "postcopy", "moving it would destroy it");
    check_refused(*shared, "cpr-transfer", "cpr-transfer");
    check_refused(*shared, "teleport", "there is no way 'teleport'; there are x-ignore-shared, cpr-transfer");
    const auto apart = started(private_guest());
    check_refused(*apart, "x-ignore-shared", "the guest's RAM is private to its QEMU");
}

TEST_CASE("a guest of private RAM is moved by postcopy, there and back, and all of its RAM with it") {
    NEEDS_QEMU();
    const OtherQemu other;
    const auto vm = started(private_guest());
    const auto plan = vm->update(other.path(), {{"kind", "plan"}});
    REQUIRE_MESSAGE(plan, plan.error().message);
    CHECK_MESSAGE(plan->outcome == Outcome::kPlanned, plan->reason);
    CHECK(plan->way_why.find("no way back") != std::string::npos);
    for (unsigned n = 0; n < 4; ++n) {
        const auto record = vm->update(n % 2 == 0 ? other.path() : kQemuPath);
        REQUIRE_MESSAGE(record, record.error().message);
        REQUIRE_MESSAGE(record->outcome == Outcome::kCompleted, record->reason);
        CHECK(record->way == "postcopy");
        CHECK(record->blackout_us.has_value());
        check_runs(*vm);
        check_ram(*vm);
    }
}

// Bytes that the host has left.
uint64_t host_available() {
    std::ifstream file("/proc/meminfo");
    uint64_t kib = 0;
    for (std::string key, unit; file >> key >> kib && std::getline(file, unit);)
        if (key == "MemAvailable:") return kib * 1024;
    return 0;
}

TEST_CASE("a guest of private RAM is moved within 15 % more memory than it has") {
    NEEDS_QEMU();
    auto options = private_guest();
    options.memory_mib = 2048;
    const uint64_t size = uint64_t{options.memory_mib} << 20, allowed = size * 15 / 100;
    if (host_available() < size * 3 / 2) {
        std::printf("SKIPPED: the host has less than 3 GiB left\n");
        return;
    }
    const MemoryGroup group;
    const auto vm = started(options);
    check_ram(*vm);
    for (unsigned n = 0; n < 2; ++n) {
        MemoryWatch watch(vm->supervisor_pid(), group);
        const MemoryUse before = watch.before();
        CHECK(before.mapped > size);
        const bool limited = before.charged && group.limit(*before.charged + allowed);
        const auto record = vm->update(kQemuPath);
        const MemoryUse peak = watch.stop();
        REQUIRE_MESSAGE(record, record.error().message);
        REQUIRE_MESSAGE(record->outcome == Outcome::kCompleted, record->reason);
        const auto percent = [&](uint64_t more) {
            return static_cast<double>(more) * 100 / static_cast<double>(size);
        };
        std::printf("private RAM: at most %.1f %% more mapped; %s\n", percent(peak.mapped - before.mapped),
            limited ? "and the kernel gave 15 % more" : "SKIPPED: a limit, since there is no memory cgroup");
        CHECK(peak.mapped <= before.mapped + allowed);
        check_runs(*vm);
        check_ram(*vm);
    }
}

TEST_CASE(
    "a destination of a postcopy that dies before the guest has left gives it back; afterwards it is lost") {
    NEEDS_QEMU();
    const auto vm = started(private_guest());
    // A source that has got the guest by a postcopy itself.
    REQUIRE(vm->update(kQemuPath)->outcome == Outcome::kCompleted);
    const pid_t source = vm->vmm_pid();
    for (const Phase phase : {Phase::kNegotiating, Phase::kPreparing, Phase::kPausing}) {
        CAPTURE(to_string(phase));
        const auto record = vm->update(kQemuPath, fault(phase, Party::kDestination, "kill"));
        REQUIRE_MESSAGE(record, record.error().message);
        CHECK_MESSAGE(record->reason.find("signal 9") != std::string::npos, record->reason);
        CHECK(vm->vmm_pid() == source);
        check_runs(*vm);
        check_ram(*vm);
    }
    const auto record = vm->update(kQemuPath, fault(Phase::kTransferring, Party::kDestination, "kill"));
    REQUIRE_MESSAGE(record, record.error().message);
    CHECK_MESSAGE(record->outcome == Outcome::kLost, to_string(record->outcome), ": ", record->reason);
    CHECK(vm->status()["state"] == "lost");
    CHECK(processes_of(vm->directory()).size() == 1);
}

TEST_CASE("a source of a postcopy that dies with pages of the guest loses it, in words") {
    NEEDS_QEMU();
    const auto vm = started(private_guest());
    const auto record = vm->update(kQemuPath, fault(Phase::kCommitting, Party::kSource, "kill"));
    REQUIRE_MESSAGE(record, record.error().message);
    CHECK_MESSAGE(record->outcome == Outcome::kLost, to_string(record->outcome), ": ", record->reason);
    CHECK(vm->status()["state"] == "lost");
    CHECK(processes_of(vm->directory()).size() == 1);
}

TEST_CASE("a supervisor that dies in a postcopy costs the guest nothing: its successor goes on with it") {
    NEEDS_QEMU();
    const auto vm = started(private_guest());
    for (const Phase phase :
        {Phase::kPreparing, Phase::kPausing, Phase::kTransferring, Phase::kCommitting, Phase::kProbation}) {
        CAPTURE(to_string(phase));
        const pid_t source = vm->vmm_pid();
        CHECK(!vm->update(kQemuPath, fault(phase, Party::kSupervisor, "kill")));
        REQUIRE(LiveVm::eventually([&] { return !vm->supervisor_alive(); }));
        const auto restarted = vm->start_supervisor();
        REQUIRE_MESSAGE(restarted, restarted.error().message);
        REQUIRE(vm->map_guest());
        const bool before = phase == Phase::kPreparing || phase == Phase::kPausing;
        CHECK((vm->vmm_pid() == source) == before);
        check_runs(*vm);
        check_ram(*vm);
        REQUIRE(vm->update(kQemuPath)->outcome == Outcome::kCompleted);
        check_ram(*vm);
    }
}

// What the QEMU of that number says of its migration, when no supervisor is there to be asked.
nlohmann::json migration_of(const LiveVm& vm, unsigned number) {
    const auto limit = Deadline::after(std::chrono::seconds(10));
    auto monitor = left_monitor(vm, number);
    REQUIRE_MESSAGE(monitor, monitor.error().message);
    const auto answer = monitor->execute("query-migrate", nullptr, limit);
    REQUIRE_MESSAGE(answer, answer.error().message);
    return *answer;
}

TEST_CASE("a destination that has all pages runs the guest on, though source and supervisor have died") {
    NEEDS_QEMU();
    for (const Phase phase : {Phase::kTransferring, Phase::kCommitting}) {
        CAPTURE(to_string(phase));
        const auto vm = started(private_guest());
        const pid_t source = vm->vmm_pid();
        CHECK(!vm->update(kQemuPath, fault(phase, Party::kSupervisor, "kill")));
        REQUIRE(LiveVm::eventually([&] { return !vm->supervisor_alive(); }));
        REQUIRE(LiveVm::eventually([&] { return migration_of(*vm, 2).value("status", "") == "completed"; },
            std::chrono::seconds(60)));
        // Next to nothing has crossed while the source kept it.
        const auto ram = migration_of(*vm, 1).value("ram", nlohmann::json::object());
        CHECK_MESSAGE(ram.value("precopy-bytes", UINT64_MAX) < (1 << 20), ram.dump());
        ::kill(source, SIGKILL);
        const auto restarted = vm->start_supervisor();
        REQUIRE_MESSAGE(restarted, restarted.error().message);
        REQUIRE(vm->map_guest());
        CHECK(vm->baton().read().owner == 2);
        check_runs(*vm);
        check_ram(*vm);
        REQUIRE(vm->update(kQemuPath)->outcome == Outcome::kCompleted);
        check_ram(*vm);
    }
}

void check_updated(LiveVm& vm, const std::string& binary, const char* way, const nlohmann::json& more = {}) {
    const auto record = vm.update(binary, more);
    REQUIRE_MESSAGE(record, record.error().message);
    REQUIRE_MESSAGE(record->outcome == Outcome::kCompleted, record->reason);
    CHECK(record->way == way);
    std::printf("%s -> %s by %s: blackout %llu us\n", record->from.version.c_str(),
        record->to.version.c_str(), record->way.c_str(),
        static_cast<unsigned long long>(record->blackout_us.value_or(0)));
    check_runs(vm);
}

TEST_CASE("a guest goes to a newer QEMU, and back, by x-ignore-shared or postcopy") {
    NEEDS_NEWER_QEMU();
    const auto shared = started(qemu_guest());
    const auto version = [&] { return shared->status()["vmm"].value("version", ""); };
    const std::string first = version();
    check_updated(*shared, newer_qemu(), "x-ignore-shared");
    CHECK_MESSAGE(version() != first, "LIVEUPDATE_TEST_NEWER_QEMU names another QEMU of the same version");
    check_updated(*shared, kQemuPath, "x-ignore-shared");
    const auto apart = started(private_guest());
    check_updated(*apart, newer_qemu(), "postcopy");
    check_ram(*apart);
    check_updated(*apart, kQemuPath, "postcopy");
    check_ram(*apart);
}

TEST_CASE("a guest goes from one newer QEMU to the next by cpr-transfer, and otherwise stays where it is") {
    NEEDS_NEWER_QEMU();
    auto options = qemu_guest();
    options.vmm = newer_qemu();
    const auto plain = started(options);
    check_refused(*plain, "cpr-transfer", "aux-ram-share=on", newer_qemu());
    options.qemu_toml.replace(options.qemu_toml.find("\"q35\""), 5, "\"q35,aux-ram-share=on\"");
    const auto vm = started(options);
    for (unsigned n = 0; n < 3; ++n)
        check_updated(*vm, newer_qemu(), "cpr-transfer", by("cpr-transfer"));
    check_updated(*vm, newer_qemu(), "x-ignore-shared");
    const pid_t source = vm->vmm_pid();
    for (const Phase phase : {Phase::kPreparing, Phase::kPausing, Phase::kTransferring, Phase::kCommitting}) {
        CAPTURE(to_string(phase));
        auto request = fault(phase, Party::kDestination, "kill");
        request.update(by("cpr-transfer"));
        const auto record = vm->update(newer_qemu(), request);
        REQUIRE_MESSAGE(record, record.error().message);
        CHECK_MESSAGE(record->reason.find("signal 9") != std::string::npos, record->reason);
        CHECK(vm->vmm_pid() == source);
        check_runs(*vm);
    }
    check_updated(*vm, newer_qemu(), "cpr-transfer", by("cpr-transfer"));
}

TEST_CASE("a supervisor that dies before the source is told of cpr-transfer leaves no destination behind") {
    NEEDS_NEWER_QEMU();
    auto options = qemu_guest();
    options.vmm = newer_qemu();
    options.qemu_toml.replace(options.qemu_toml.find("\"q35\""), 5, "\"q35,aux-ram-share=on\"");
    const auto vm = started(options);
    for (const Phase phase :
        {Phase::kNegotiating, Phase::kPreparing, Phase::kPausing, Phase::kTransferring, Phase::kCommitting}) {
        CAPTURE(to_string(phase));
        const pid_t source = vm->vmm_pid();
        auto request = fault(phase, Party::kSupervisor, "kill");
        request.update(by("cpr-transfer"));
        CHECK(!vm->update(newer_qemu(), request));
        REQUIRE(LiveVm::eventually([&] { return !vm->supervisor_alive(); }));
        const auto restarted = vm->start_supervisor();
        REQUIRE_MESSAGE(restarted, restarted.error().message);
        const bool before = handoff::row(phase).before_commit && phase != Phase::kCommitting;
        CHECK((vm->vmm_pid() == source) == before);
        check_runs(*vm); // and no other QEMU is there
        check_updated(*vm, newer_qemu(), "cpr-transfer", by("cpr-transfer"));
    }
}

TEST_CASE("a guest that dies with its supervisor can be started, though a destination waits for it") {
    NEEDS_NEWER_QEMU();
    auto options = qemu_guest();
    options.vmm = newer_qemu();
    options.qemu_toml.replace(options.qemu_toml.find("\"q35\""), 5, "\"q35,aux-ram-share=on\"");
    const auto vm = started(options);
    const pid_t source = vm->vmm_pid();
    auto request = fault(Phase::kPreparing, Party::kSupervisor, "kill");
    request.update(by("cpr-transfer"));
    CHECK(!vm->update(newer_qemu(), request));
    REQUIRE(LiveVm::eventually([&] { return !vm->supervisor_alive(); }));
    ::kill(source, SIGKILL);
    const auto restarted = vm->start_supervisor();
    REQUIRE_MESSAGE(restarted, restarted.error().message);
    REQUIRE(vm->map_guest());
    CHECK(vm->guest_started());
    check_runs(*vm);
}

} // namespace
} // namespace liveupdate::tests
