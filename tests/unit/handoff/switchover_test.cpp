// Whole updates between two sessions in one process, with the test in the supervisor's place.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "handoff/base/fd.hpp"
#include "handoff/negotiation.hpp"
#include "handoff/session.hpp"
#include "tests/unit/handoff/session_driver.hpp"
#include "tests/unit/handoff/support.hpp"

namespace liveupdate::handoff {
namespace {

using proto::Message;

constexpr uint64_t kNoHurry = 30'000'000'000; // ns
constexpr uint64_t kShort = 50'000'000;

// The lines of an update, as the supervisor sends them. `me` and `heir` are participants.
class Handover {
public:
    Handover(
        const GuestFilesForTest& files, SessionDriver& source, SessionDriver& destination, Participant heir)
        : files_(files), source_(source), destination_(destination), heir_(heir) {}

    void prepare() {
        Message describe;
        describe.mutable_describe();
        source_.send(std::move(describe));
        const Received described = must(source_.channel().receive(patience()));
        REQUIRE(described.message.has_description());
        CHECK(described.fds.contains("doorbell"));
        const auto agreement = must(negotiate(source_.greet(), destination_.greet(),
            sections_from(described.message.description().sections())));
        sections_ = agreement.sections;
        transfer_ = must(TransferArea::create(sections_));
        Message message;
        auto& order = *message.mutable_prepare();
        *order.mutable_manifest() = files_.manifest();
        order.set_participant(heir_);
        order.set_fixed_state(described.message.description().fixed_state());
        add_sections(sections_, order.mutable_sections());
        const Message answer = destination_.ask(std::move(message), files_.fds_with(transfer_));
        REQUIRE_MESSAGE(answer.has_prepared(), answer.failure().message());
    }
    Message save_trial() {
        Message message;
        add_sections(sections_, message.mutable_save_trial()->mutable_sections());
        return source_.ask(std::move(message), {{"transfer", transfer_.get()}});
    }
    Message load_trial() {
        Message message;
        message.mutable_load_trial();
        return destination_.ask(std::move(message));
    }
    void arm(uint64_t for_ns = kNoHurry) {
        Message message;
        message.mutable_arm()->set_deadline_ns(monotonic_ns() + for_ns);
        REQUIRE(destination_.ask(std::move(message)).has_armed());
    }
    Message switch_over(uint64_t limit_ns = kNoHurry, uint64_t begin_ns = kNoHurry) {
        return source_.ask(
            switchover_message(limit_ns, monotonic_ns() + begin_ns), {{"transfer", transfer_.get()}});
    }
    Message switchover_message(uint64_t limit_ns, uint64_t deadline_ns) const {
        Message message;
        auto& order = *message.mutable_switchover();
        order.set_deadline_ns(deadline_ns);
        order.set_blackout_limit_ns(limit_ns);
        order.set_destination_participant(heir_);
        add_sections(sections_, order.mutable_sections());
        return message;
    }
    const UniqueFd& transfer() const { return transfer_; }

private:
    const GuestFilesForTest& files_;
    SessionDriver& source_;
    SessionDriver& destination_;
    Participant heir_;
    std::vector<SectionInfo> sections_;
    UniqueFd transfer_;
};

// A guest in `source` as participant 1, with a destination prepared as 2.
struct Prepared {
    Prepared() {
        source.launch(files, 1);
        source.script().counter = 41;
        handover.prepare();
    }
    // The update is off and the guest runs on in the source as if nothing had been.
    void check_rolled_back(const Message& answer, const std::string& reason) {
        REQUIRE_MESSAGE(answer.has_switched(), answer.failure().message());
        CHECK_FALSE(answer.switched().committed());
        CHECK(answer.switched().paused());
        CHECK_MESSAGE(contains(answer.switched().reason(), reason), answer.switched().reason());
        CHECK(files.baton.held_by(1));
        CHECK(source.script().resumes == source.script().saves);
        CHECK(source.script().updates_over == 1);
        CHECK(source.greet().participant() == 1);
    }
    void check_destination_ends(const std::string& reason) {
        const Message told = destination.receive();
        REQUIRE(told.has_switched());
        CHECK_FALSE(told.switched().committed());
        CHECK_MESSAGE(contains(told.switched().reason(), reason), told.switched().reason());
        CHECK(destination.exit_status() == 0);
        CHECK(destination.script().takes == 0);
    }
    GuestFilesForTest files;
    SessionDriver source, destination;
    Handover handover{files, source, destination, 2};
};

} // namespace

TEST_CASE("a guest goes from the source to the destination with its state") {
    Prepared p;
    p.handover.arm();
    const Message left = p.handover.switch_over();
    REQUIRE(left.has_switched());
    CHECK(left.switched().committed());
    const Message arrived = p.destination.receive();
    REQUIRE(arrived.has_switched());
    CHECK(arrived.switched().committed());
    CHECK(arrived.switched().spans_size() >= 2);
    CHECK(p.files.baton.held_by(2));
    CHECK(p.destination.script().counter == 41);
    CHECK(p.destination.script().takes == 1);
    CHECK(p.source.script().resumes == 0);
    CHECK(p.destination.greet().participant() == 2);
    CHECK(p.source.greet().participant() == 0);
    Message release;
    release.mutable_release();
    p.source.send(release);
    CHECK(p.source.exit_status() == 0);
    CHECK(p.source.script().let_go == 1);
}

TEST_CASE("a guest goes on to a third VMM and back under a further number") {
    GuestFilesForTest files;
    SessionDriver first;
    first.launch(files, 1);
    first.script().counter = 7;
    std::vector<std::unique_ptr<SessionDriver>> later;
    SessionDriver* from = &first;
    for (Participant heir = 2; heir <= 5; ++heir) {
        later.push_back(std::make_unique<SessionDriver>());
        Handover handover(files, *from, *later.back(), heir);
        handover.prepare();
        CHECK(handover.save_trial().has_trial_saved());
        CHECK(handover.load_trial().has_trial_loaded());
        handover.arm();
        REQUIRE(handover.switch_over().switched().committed());
        REQUIRE(later.back()->receive().switched().committed());
        from = later.back().get();
        CHECK(files.baton.held_by(heir));
        CHECK(from->script().counter.fetch_add(1) == 5u + heir);
    }
}

TEST_CASE("a rehearsal leaves the guest and the baton where they are") {
    Prepared p;
    CHECK(p.handover.save_trial().has_trial_saved());
    CHECK(p.handover.load_trial().has_trial_loaded());
    CHECK(p.source.script().saves == 1);
    CHECK(p.source.script().resumes == 1);
    CHECK(p.files.baton.read() == BatonWord{1, 1, 0, BatonState::kHeld});
    p.handover.arm();
    CHECK(p.handover.switch_over().switched().committed());
}

TEST_CASE("a guest whose trial state cannot be saved runs on") {
    Prepared p;
    p.source.script().fail_save = true;
    const Message answer = p.handover.save_trial();
    REQUIRE(answer.has_failure());
    CHECK(contains(answer.failure().message(), "the name could not be read"));
    CHECK(p.source.script().resumes == 1);
    CHECK(p.files.baton.held_by(1));
}

TEST_CASE("an update that is called off after the rehearsal is over for both") {
    Prepared p;
    CHECK(p.handover.save_trial().has_trial_saved());
    Message abandon;
    abandon.mutable_abandon();
    CHECK(p.source.ask(abandon).has_abandoned());
    CHECK(p.source.script().updates_over == 1);
    CHECK(p.destination.ask(abandon).has_abandoned());
    CHECK(p.destination.exit_status() == 0);
    CHECK(p.source.greet().participant() == 1);
}

TEST_CASE("a source whose guest cannot be described refuses the update") {
    GuestFilesForTest files;
    SessionDriver source;
    source.launch(files, 1);
    source.script().fail_describe = true;
    Message describe;
    describe.mutable_describe();
    CHECK(contains(source.refusal_of(describe), "the guest has ended"));
}

TEST_CASE("state that the destination refuses stays with the source, which tells the reason") {
    Prepared p;
    p.destination.script().fail_load = true;
    p.handover.arm();
    p.check_rolled_back(p.handover.switch_over(), "the counter is odd");
    p.check_destination_ends("the counter is odd");
}

TEST_CASE("state that the source cannot save stays with the source") {
    Prepared p;
    p.source.script().fail_save = true;
    p.handover.arm();
    p.check_rolled_back(p.handover.switch_over(), "the name could not be read");
    p.check_destination_ends("update up");
}

TEST_CASE("a source that forgets to save a section keeps its guest") {
    Prepared p;
    p.source.script().save_too_little = true;
    p.handover.arm();
    p.check_rolled_back(p.handover.switch_over(kShort), "name/0");
    p.check_destination_ends("update up");
}

TEST_CASE("a destination that is too slow finds the guest gone") {
    Prepared p;
    p.destination.script().hold_load = true;
    p.handover.arm();
    p.check_rolled_back(p.handover.switch_over(kShort), "blackout limit");
    p.destination.script().hold_load = false;
    p.check_destination_ends("");
    CHECK(p.files.baton.held_by(1));
}

TEST_CASE("a destination that was never armed is not waited for longer than the blackout limit") {
    Prepared p;
    p.check_rolled_back(p.handover.switch_over(kShort), "blackout limit");
}

TEST_CASE("a destination that has died is not waited for at all") {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(0);
    const UniqueFd dead = must(fd::pidfd_open(child));
    Prepared p;
    const Message answer = p.source.ask(p.handover.switchover_message(kNoHurry, monotonic_ns() + kNoHurry),
        {{"transfer", p.handover.transfer().get()}, {"destination", dead.get()}});
    p.check_rolled_back(answer, "destination died");
    ::waitpid(child, nullptr, 0);
}

TEST_CASE("after an update that was rolled back the next one succeeds") {
    Prepared p;
    p.check_rolled_back(p.handover.switch_over(kShort), "blackout limit");
    SessionDriver next;
    Handover again(p.files, p.source, next, 3);
    again.prepare();
    again.arm();
    CHECK(again.switch_over().switched().committed());
    CHECK(next.receive().switched().committed());
    CHECK(p.files.baton.held_by(3));
}

TEST_CASE("a switchover that is asked for too late, too long or for nobody pauses nothing") {
    Prepared p;
    const std::vector<FdToSend> fds = {{"transfer", p.handover.transfer().get()}};
    const uint64_t later = monotonic_ns() + kNoHurry;
    CHECK(contains(
        p.source.refusal_of(p.handover.switchover_message(kShort, later), {{"transfer", p.files.ram.get()}}),
        "the transfer area has"));
    CHECK(contains(
        p.source.refusal_of(p.handover.switchover_message(kShort, monotonic_ns() - 1), fds), "too late"));
    for (const uint64_t limit :
        {UINT64_MAX, static_cast<uint64_t>(INT64_MAX), uint64_t{24} * 3600 * 1'000'000'000})
        CHECK(contains(
            p.source.refusal_of(p.handover.switchover_message(limit, later), fds), "blackout limit"));
    for (const uint32_t heir : {0u, 1u, kMaxParticipant + 1u}) {
        Message message = p.handover.switchover_message(kShort, later);
        message.mutable_switchover()->set_destination_participant(heir);
        CHECK(contains(p.source.refusal_of(message, fds), "no such destination"));
    }
    CHECK(p.source.script().saves == 0);
    CHECK(p.files.baton.held_by(1));
}

TEST_CASE("a source that has handed its guest over does nothing more with it") {
    Prepared p;
    p.handover.arm();
    REQUIRE(p.handover.switch_over().switched().committed());
    REQUIRE(p.destination.receive().switched().committed());
    const Script& script = p.source.script();
    const int saves = script.saves;
    size_t refused = 0;
    for (const Message& message : one_of_each_kind()) {
        if (message.has_stop() || message.has_release()) continue;
        INFO(kind_of(message));
        p.source.refusal_of(message);
        ++refused;
    }
    CHECK(refused == one_of_each_kind().size() - 2);
    CHECK(script.saves == saves);
    CHECK(script.resumes == 0);
    CHECK(script.updates_over == 0);
    CHECK(p.files.baton.held_by(2));
    // Its connections are the destination's now: it does not read from them either.
    const int dispatched = script.dispatches;
    const uint64_t one = 1;
    REQUIRE(::write(p.source.doorbell().get(), &one, sizeof(one)) == sizeof(one));
    p.source.greet();
    p.source.greet();
    CHECK(script.dispatches == dispatched);
}

TEST_CASE("a source that has handed its guest over ends with its supervisor") {
    Prepared p;
    p.handover.arm();
    REQUIRE(p.handover.switch_over().switched().committed());
    p.source.disconnect();
    CHECK(p.source.exit_status() == 0);
    CHECK(p.source.script().updates_over == 0);
}

TEST_CASE("a switchover that has begun is finished without the supervisor") {
    Prepared p;
    p.handover.arm();
    p.source.send(p.handover.switchover_message(kNoHurry, monotonic_ns() + kNoHurry),
        {{"transfer", p.handover.transfer().get()}});
    p.source.disconnect();
    p.destination.disconnect();
    REQUIRE(comes_true([&] { return p.files.baton.held_by(2); }));
    CHECK(p.source.exit_status() == 0);
    CHECK(p.destination.greet().participant() == 2);
}

} // namespace liveupdate::handoff
