// Kills the source, the destination or the supervisor in each phase; what must follow is read from the phase
// table. LIVEUPDATE_TEST_FAULTS_ROUNDS: passes over the whole matrix (1).
#include <signal.h>

#include <optional>
#include <set>

#include "handoff/phase.hpp"
#include "tests/integration/checks.hpp"

namespace liveupdate::tests {
namespace {

using handoff::Party;
using handoff::Phase;
using supervisor::Outcome;
using ::tests::guests::read_field;

unsigned rounds() {
    return std::max(1u, number_from("LIVEUPDATE_TEST_FAULTS_ROUNDS", 1));
}

LiveVmOptions small_guest() {
    LiveVmOptions options;
    options.cmdline = "skew_us=1000";
    return options;
}

nlohmann::json fault(Phase phase, Party victim, const char* action) {
    return {{"fault", {{"phase", to_string(phase)}, {"victim", to_string(victim)}, {"action", action}}},
        {"timeout_ms", 20000}};
}

// Whom the guest must be found with afterwards.
Party survivor(Phase end) {
    switch (end) {
    case Phase::kAbandoned:
        return Party::kSource;
    case Phase::kCompleted:
        return Party::kDestination;
    default:
        return Party::kNobody;
    }
}

bool fits(Outcome outcome, Phase end) {
    switch (end) {
    case Phase::kAbandoned:
        return outcome == Outcome::kAbandoned || outcome == Outcome::kRolledBack ||
               outcome == Outcome::kRefused;
    case Phase::kCompleted:
        return outcome == Outcome::kCompleted;
    default:
        return outcome == Outcome::kLost;
    }
}

// A VM that takes one fault after another; a new one when a guest was lost, as the table says it may be.
class FaultedVm {
public:
    LiveVm& get() {
        if (vm_) return *vm_;
        vm_ = started(small_guest());
        update_in_turn(*vm_, 0, 2);
        before_ = holdings_at_rest(*vm_);
        supervisor_ = vm_->supervisor_pid();
        turn_ = 0;
        return *vm_;
    }

    void strike(Phase phase, Party victim, const char* action) {
        CAPTURE(to_string(phase));
        CAPTURE(to_string(victim));
        LiveVm& vm = get();
        const pid_t source = vm.vmm_pid();
        const auto result = vm.update(turn(turn_), fault(phase, victim, action));
        const Phase end = handoff::end_after_death(phase, victim);
        if (victim == Party::kSupervisor)
            supervisor_died(result);
        else
            check_record(result, end);
        check_survivor(source, survivor(end));
        if (victim != Party::kSupervisor) return;
        // An adopted VMM has no stderr pipe, and so on: a new count, which also shows that it can be updated.
        update_in_turn(vm, turn_, 2);
        before_ = holdings_at_rest(vm);
    }

    void fail(Phase phase) {
        CAPTURE(to_string(phase));
        LiveVm& vm = get();
        const pid_t source = vm.vmm_pid();
        const auto record = vm.update(turn(turn_), fault(phase, Party::kDestination, "fail"));
        REQUIRE_MESSAGE(record, record.error().message);
        CHECK_MESSAGE(fits(record->outcome, Phase::kAbandoned), to_string(record->outcome));
        // Whether the vCPUs had been stopped is what tells the two apart.
        // A failure of the pause itself comes before any has.
        const bool paused = phase == Phase::kTransferring || phase == Phase::kCommitting;
        CHECK_MESSAGE((record->outcome == Outcome::kRolledBack) == paused, to_string(record->outcome), ": ",
            record->reason);
        CHECK_MESSAGE(
            record->reason.find("a fault asked for by a test") != std::string::npos, record->reason);
        check_survivor(source, Party::kSource);
    }

private:
    static void check_record(const Result<supervisor::UpdateRecord>& record, Phase end) {
        REQUIRE_MESSAGE(record, record.error().message);
        CHECK_MESSAGE(fits(record->outcome, end), to_string(record->outcome), " (", record->reason,
            ") where the table says ", to_string(end));
        if (end == Phase::kCompleted) return;
        CHECK_MESSAGE(record->reason.find("signal 9") != std::string::npos, record->reason);
    }

    void supervisor_died(const Result<supervisor::UpdateRecord>& result) {
        CHECK(!result);
        REQUIRE(LiveVm::eventually([&] { return !vm_->supervisor_alive(); }));
        // The VMMs settle it between them: one of them ends up with the guest, the other ends.
        CHECK(vm_->goes_on());
        const auto restarted = vm_->start_supervisor();
        REQUIRE_MESSAGE(restarted, restarted.error().message);
    }

    void check_survivor(pid_t source, Party who) {
        check_never_two_owners(*vm_, 1);
        if (who == Party::kNobody) return check_lost();
        check_sound(*vm_, 1);
        const pid_t now = vm_->vmm_pid();
        CHECK((now == source) == (who == Party::kSource));
        if (who == Party::kDestination) ++turn_;
        CHECK(::kill(now, 0) == 0);
        if (vm_->supervisor_pid() == supervisor_) {
            check_nothing_leaked(*vm_, before_);
            return;
        }
        supervisor_ = vm_->supervisor_pid();
        CHECK(LiveVm::eventually([&] { return vm_->holdings().processes == before_.processes; }));
        const Holdings after = vm_->holdings();
        CHECK(after.vmm == before_.vmm);
        CHECK(after.sockets == before_.sockets);
        CHECK(after.zombies == 0);
    }

    void check_lost() {
        const auto status = vm_->status();
        CHECK_MESSAGE(status.value("state", "") == "lost", status.dump());
        const std::string directory = vm_->directory();
        // Only the supervisor is left, and nothing at all once it is told to stop.
        CHECK(LiveVm::eventually([&] { return vm_->holdings().processes == 1; }));
        CHECK(vm_->holdings().zombies == 0);
        vm_.reset();
        CHECK(processes_of(directory).empty());
    }

    std::unique_ptr<LiveVm> vm_;
    Holdings before_;
    pid_t supervisor_ = -1; // whose holdings those are
    unsigned turn_ = 0;     // the build that does not run
};

constexpr Phase kStruck[] = {Phase::kNegotiating, Phase::kPreparing, Phase::kRehearsing, Phase::kPausing,
    Phase::kTransferring, Phase::kCommitting, Phase::kProbation};

void strike_all(Party victim) {
    FaultedVm vm;
    for (unsigned round = 0; round < rounds(); ++round) {
        for (const Phase phase : kStruck)
            vm.strike(phase, victim, "kill");
        // And none of it has worn anything out.
        LiveVm& after = vm.get();
        CHECK(after.goes_on());
    }
}

TEST_CASE("a destination that is killed in any phase costs the guest what the phase table says") {
    NEEDS_KVM();
    strike_all(Party::kDestination);
}

TEST_CASE("a source that is killed in any phase costs the guest what the phase table says") {
    NEEDS_KVM();
    strike_all(Party::kSource);
}

TEST_CASE("a supervisor that is killed in any phase costs the guest nothing, and its successor finds it") {
    NEEDS_KVM();
    strike_all(Party::kSupervisor);
}

TEST_CASE("a failure in any phase before the commit leaves the guest in the source, with a reason") {
    NEEDS_KVM();
    FaultedVm vm;
    for (unsigned round = 0; round < rounds(); ++round)
        for (const Phase phase : kStruck)
            if (handoff::row(phase).before_commit) vm.fail(phase);
}

TEST_CASE("a VM that has been struck in every phase can still be updated") {
    NEEDS_KVM();
    FaultedVm vm;
    for (const Phase phase : kStruck)
        if (handoff::row(phase).before_commit) vm.strike(phase, Party::kDestination, "kill");
    update_in_turn(vm.get(), 0, 2);
    check_sound(vm.get(), 1);
}

} // namespace
} // namespace liveupdate::tests
