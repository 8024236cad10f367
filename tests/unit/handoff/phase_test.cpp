#include "handoff/phase.hpp"

#include <doctest/doctest.h>

#include <string>

namespace liveupdate::handoff {

TEST_CASE("a phase's word reads back as the phase") {
    for (const PhaseRow& r : kPhases) {
        CHECK(parse_phase(r.word) == r.phase);
        CHECK(to_string(r.phase) == r.word);
    }
    CHECK(parse_phase("transferring") == Phase::kTransferring);
}

TEST_CASE("a word that names no phase is no phase") {
    CHECK_FALSE(parse_phase(""));
    CHECK_FALSE(parse_phase("Pausing"));
    CHECK_FALSE(parse_phase("pausing "));
}

TEST_CASE("an update without faults goes through the phases in order") {
    std::string path;
    for (Phase at = Phase::kNegotiating; !is_end(at); at = row(at).then)
        path += std::string(to_string(at)) + ", ";
    CHECK(path == "negotiating, preparing, rehearsing, pausing, transferring, committing, probation, ");
}

TEST_CASE("nobody runs the guest only from pausing to committing and in the two ways back") {
    for (const PhaseRow& r : kPhases) {
        if (r.phase == Phase::kFailed) continue;
        const bool blackout = r.phase == Phase::kPausing || r.phase == Phase::kTransferring ||
                              r.phase == Phase::kCommitting || r.phase == Phase::kRollingBack ||
                              r.phase == Phase::kRecovering;
        CHECK_MESSAGE((r.guest_on == Party::kNobody) == blackout, r.word);
    }
}

TEST_CASE("the death of a destination before the commit abandons the update") {
    size_t phases = 0;
    for (const PhaseRow& r : kPhases) {
        if (!r.before_commit || is_end(r.phase) || r.phase == Phase::kRollingBack) continue;
        CHECK_MESSAGE(end_after_death(r.phase, Party::kDestination) == Phase::kAbandoned, r.word);
        ++phases;
    }
    CHECK(phases == 6);
}

TEST_CASE("the death of a source before it has offered the guest fails the update") {
    for (const Phase phase :
        {Phase::kNegotiating, Phase::kPreparing, Phase::kRehearsing, Phase::kPausing, Phase::kTransferring})
        CHECK_MESSAGE(end_after_death(phase, Party::kSource) == Phase::kFailed, to_string(phase));
}

TEST_CASE("the death of a source that has offered the guest does not stop the update") {
    CHECK(end_after_death(Phase::kCommitting, Party::kSource) == Phase::kCompleted);
    CHECK(end_after_death(Phase::kProbation, Party::kSource) == Phase::kCompleted);
}

TEST_CASE("without a supervisor nothing begins, and what has begun is finished") {
    for (const Phase phase : {Phase::kNegotiating, Phase::kPreparing, Phase::kRehearsing})
        CHECK_MESSAGE(end_after_death(phase, Party::kSupervisor) == Phase::kAbandoned, to_string(phase));
    for (const Phase phase : {Phase::kPausing, Phase::kTransferring, Phase::kCommitting, Phase::kProbation})
        CHECK_MESSAGE(end_after_death(phase, Party::kSupervisor) == Phase::kCompleted, to_string(phase));
}

TEST_CASE("every death in every phase leads to an end") {
    for (const PhaseRow& r : kPhases)
        for (const Party victim : {Party::kSource, Party::kDestination, Party::kSupervisor})
            CHECK(is_end(end_after_death(r.phase, victim)));
}

} // namespace liveupdate::handoff
