// The phases of a handoff, once, as data. Documents, traces, the fault matrix of the tests and the words
// of the command line derive from this table.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string_view>

namespace liveupdate::handoff {

enum class Phase {
    kNegotiating,
    kPreparing,
    kRehearsing,
    kPausing,
    kTransferring,
    kCommitting,
    kProbation,
    kRollingBack,
    kRecovering,
    // Ends.
    kCompleted,
    kAbandoned,
    kRecovered,
    kFailed,
};

enum class Party { kSource, kDestination, kSupervisor, kNobody };

struct PhaseRow {
    Phase phase;
    std::string_view word;
    Party guest_on; // who runs the guest in this phase
    std::string_view done_when;
    Phase then;
    Phase
        on_fault; // of the handoff itself: a refusal, a timeout, the death of a process that is not the owner
    Phase on_owner_death;
    bool before_commit;
};

inline constexpr std::array kPhases = {
    PhaseRow{Phase::kNegotiating, "negotiating", Party::kSource,
        "protocol, capabilities and state versions are agreed", Phase::kPreparing, Phase::kAbandoned,
        Phase::kRecovering, true},
    PhaseRow{Phase::kPreparing, "preparing", Party::kSource,
        "the destination has RAM mapped and populated, its VM and vCPUs created, its fds taken",
        Phase::kRehearsing, Phase::kAbandoned, Phase::kRecovering, true},
    PhaseRow{Phase::kRehearsing, "rehearsing", Party::kSource,
        "the destination has loaded a trial state and thrown it away", Phase::kPausing, Phase::kAbandoned,
        Phase::kRecovering, true},
    PhaseRow{Phase::kPausing, "pausing", Party::kNobody,
        "all vCPUs are out of KVM_RUN and the device queues are held", Phase::kTransferring,
        Phase::kRollingBack, Phase::kRecovering, true},
    PhaseRow{Phase::kTransferring, "transferring", Party::kNobody,
        "the state is saved, loaded and validated by the destination", Phase::kCommitting,
        Phase::kRollingBack, Phase::kRecovering, true},
    // The baton has been offered: a source that dies now is not missed, a destination that dies is.
    PhaseRow{Phase::kCommitting, "committing", Party::kNobody, "the destination has taken the baton",
        Phase::kProbation, Phase::kRollingBack, Phase::kProbation, true},
    PhaseRow{Phase::kProbation, "probation", Party::kDestination,
        "the guest has made progress for the probation time", Phase::kCompleted, Phase::kCompleted,
        Phase::kRecovering, false},
    PhaseRow{Phase::kRollingBack, "rolling back", Party::kNobody,
        "the source has taken the baton back and its vCPUs run", Phase::kAbandoned, Phase::kFailed,
        Phase::kRecovering, true},
    PhaseRow{Phase::kRecovering, "recovering", Party::kNobody,
        "a VMM has been rebuilt from what is left of the guest", Phase::kRecovered, Phase::kFailed,
        Phase::kFailed, false},
    PhaseRow{Phase::kCompleted, "completed", Party::kDestination, "", Phase::kCompleted, Phase::kCompleted,
        Phase::kFailed, false},
    PhaseRow{Phase::kAbandoned, "abandoned", Party::kSource, "", Phase::kAbandoned, Phase::kAbandoned,
        Phase::kFailed, true},
    PhaseRow{Phase::kRecovered, "recovered", Party::kDestination, "", Phase::kRecovered, Phase::kRecovered,
        Phase::kFailed, false},
    PhaseRow{
        Phase::kFailed, "failed", Party::kNobody, "", Phase::kFailed, Phase::kFailed, Phase::kFailed, false},
};

constexpr const PhaseRow& row(Phase phase) {
    return kPhases[static_cast<std::size_t>(phase)];
}
constexpr std::string_view to_string(Phase phase) {
    return row(phase).word;
}
constexpr bool is_end(Phase phase) {
    return row(phase).then == phase;
}

constexpr std::string_view to_string(Party party) {
    switch (party) {
    case Party::kSource:
        return "source";
    case Party::kDestination:
        return "destination";
    case Party::kSupervisor:
        return "supervisor";
    case Party::kNobody:
        return "nobody";
    }
    return "unknown";
}

constexpr std::optional<Phase> parse_phase(std::string_view word) {
    for (const PhaseRow& r : kPhases)
        if (r.word == word) return r.phase;
    return std::nullopt;
}

// Where an update ends when `victim` is killed in `phase` and nothing else goes wrong, following the table.
constexpr Phase end_after_death(Phase phase, Party victim) {
    const PhaseRow& r = row(phase);
    if (is_end(phase)) return phase;
    Phase next = r.on_fault;
    if (victim == Party::kSupervisor) {
        // Nothing begins without it; what has begun is finished by the two VMMs alone.
        next = r.guest_on == Party::kSource ? Phase::kAbandoned : Phase::kCompleted;
    } else if (victim == (r.before_commit ? Party::kSource : Party::kDestination)) {
        next = r.on_owner_death;
    }
    while (!is_end(next)) // nothing rebuilds a VMM whose owner died: recovering ends in its fault
        next = next == Phase::kRecovering ? row(next).on_fault : row(next).then;
    return next;
}

namespace phase_invariants {

constexpr bool rows_are_in_order() {
    for (std::size_t i = 0; i < kPhases.size(); ++i)
        if (static_cast<std::size_t>(kPhases[i].phase) != i) return false;
    return true;
}
constexpr bool faults_before_commit_leave_the_guest_to_the_source() {
    for (const PhaseRow& r : kPhases) {
        if (!r.before_commit || is_end(r.phase) || r.phase == Phase::kRollingBack) continue;
        const Phase wanted = r.guest_on == Party::kSource ? Phase::kAbandoned : Phase::kRollingBack;
        if (r.on_fault != wanted) return false;
    }
    return true;
}
constexpr bool every_phase_reaches_an_end() {
    for (const PhaseRow& r : kPhases) {
        Phase at = r.phase;
        for (std::size_t steps = 0; !is_end(at); at = row(at).then)
            if (++steps > kPhases.size()) return false;
    }
    return true;
}
constexpr bool words_are_unique() {
    for (std::size_t i = 0; i < kPhases.size(); ++i)
        for (std::size_t j = i + 1; j < kPhases.size(); ++j)
            if (kPhases[i].word == kPhases[j].word) return false;
    return true;
}
constexpr bool only_what_is_after_commit_runs_on_the_destination() {
    for (const PhaseRow& r : kPhases)
        if (r.before_commit && r.guest_on == Party::kDestination) return false;
    return true;
}

static_assert(rows_are_in_order());
static_assert(faults_before_commit_leave_the_guest_to_the_source());
static_assert(every_phase_reaches_an_end());
static_assert(words_are_unique());
static_assert(only_what_is_after_commit_runs_on_the_destination());
static_assert(end_after_death(Phase::kTransferring, Party::kDestination) == Phase::kAbandoned);
static_assert(end_after_death(Phase::kCommitting, Party::kSource) == Phase::kCompleted);
static_assert(end_after_death(Phase::kProbation, Party::kSource) == Phase::kCompleted);
static_assert(end_after_death(Phase::kRehearsing, Party::kSource) == Phase::kFailed);

} // namespace phase_invariants
} // namespace liveupdate::handoff
