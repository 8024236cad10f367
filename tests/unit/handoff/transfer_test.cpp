#include "handoff/transfer.hpp"

#include <doctest/doctest.h>

#include <thread>

#include "tests/unit/handoff/support.hpp"

namespace liveupdate::handoff {
namespace {

constexpr auto kTrial = TransferRun::kTrial;
constexpr auto kReal = TransferRun::kReal;
constexpr Participant kSource = 1;
constexpr Participant kDestination = 2;

// Both ends of a transfer in one process: a baton that the source holds, and an area of `count` sections.
struct Fixture {
    explicit Fixture(uint32_t count = 3)
        : baton(must(Baton::map(must(Baton::create_segment()).get()))), area(make_area(count)) {
        REQUIRE(baton.claim(kSource));
    }
    static std::shared_ptr<TransferArea> make_area(uint32_t count) {
        std::vector<SectionInfo> sections;
        for (uint32_t i = 0; i < count; ++i)
            sections.push_back({"vcpu", i, 1 + i, 64});
        const UniqueFd file = must(TransferArea::create(sections));
        return std::make_shared<TransferArea>(must(TransferArea::map(file.get(), sections)));
    }
    Outgoing outgoing(TransferRun run = kReal) { return {*area, baton, kSource, kDestination, run, fault}; }
    Incoming incoming(TransferRun run = kReal, Deadline deadline = patience()) {
        return {area, baton, kDestination, run, deadline, {}};
    }

    Baton baton;
    std::shared_ptr<TransferArea> area;
    FaultPoint fault;
};

} // namespace

TEST_CASE("the put of the last section offers the baton, and none before it") {
    Fixture f;
    Outgoing out = f.outgoing();
    must(out.put(2, "two"));
    must(out.put(0, "zero"));
    CHECK(f.baton.held_by(kSource));
    CHECK(f.area->moment(Moment::kOffered) == 0);
    must(out.put(1, "one"));
    CHECK(f.baton.read() == BatonWord{1, kSource, kDestination, BatonState::kOffered});
    CHECK(f.area->moment(Moment::kOffered) != 0);
}

TEST_CASE("the load of the last section takes the baton, and none before it") {
    Fixture f;
    Outgoing out = f.outgoing();
    Incoming in = f.incoming();
    for (size_t i = 0; i < 3; ++i)
        must(out.put(i, "state"));
    CHECK(must(in.await(0)) == "state");
    CHECK_FALSE(must(in.loaded(0)));
    CHECK_FALSE(must(in.loaded(2)));
    CHECK(f.baton.read().state == BatonState::kOffered);
    CHECK(must(in.loaded(1)));
    CHECK(f.baton.held_by(kDestination));
    CHECK(f.area->moment(Moment::kTaken) != 0);
    CHECK(f.area->loaded_ns(2) != 0);
}

TEST_CASE("sections are found by kind and instance, with the version that was agreed") {
    Fixture f;
    Outgoing out = f.outgoing();
    const Incoming in = f.incoming();
    CHECK(must(out.find("vcpu", 2)) == 2);
    CHECK(out.version(2) == 3);
    CHECK(must(in.find("vcpu", 1)) == 1);
    CHECK(in.version(1) == 2);
    CHECK(in.count() == 3);
    for (const auto& missing : {out.find("vcpu", 3), in.find("serial", 0)}) {
        REQUIRE_FALSE(missing);
        CHECK(missing.error().code == ErrorCode::kRefused);
        CHECK(contains(missing.error().message, "is missing"));
    }
}

TEST_CASE("a trial moves all state and leaves the baton alone") {
    Fixture f;
    Outgoing out = f.outgoing(kTrial);
    Incoming in = f.incoming(kTrial);
    out.stamp_stopped();
    for (size_t i = 0; i < 3; ++i)
        must(out.put(i, "trial"));
    for (size_t i = 0; i < 3; ++i) {
        CHECK(must(in.await(i)) == "trial");
        CHECK_FALSE(must(in.loaded(i)));
    }
    CHECK(f.baton.read() == BatonWord{1, kSource, 0, BatonState::kHeld});
    CHECK(f.area->moment(Moment::kFirstStopped) == 0);
    CHECK(f.area->moment(Moment::kOffered) == 0);
}

TEST_CASE("after a trial the real run waits for real sections") {
    Fixture f(1);
    must(f.outgoing(kTrial).put(0, "trial"));
    const Incoming in = f.incoming(kReal, soon());
    CHECK(in.await(0).error().code == ErrorCode::kTimeout);
    must(f.outgoing(kReal).put(0, "real"));
    CHECK(must(f.incoming().await(0)) == "real");
}

TEST_CASE("a section that does not fit neither counts nor offers the baton") {
    Fixture f(1);
    Outgoing out = f.outgoing();
    CHECK_FALSE(out.put(0, std::string(65, 'x')));
    CHECK(f.baton.held_by(kSource));
}

TEST_CASE("a source that has lost its baton cannot offer it") {
    Fixture f(1);
    REQUIRE(f.baton.seize(f.baton.read(), 3));
    const auto put = f.outgoing().put(0, "state");
    REQUIRE_FALSE(put);
    CHECK(put.error().code == ErrorCode::kInternal);
    CHECK(contains(put.error().message, "held by 3"));
}

TEST_CASE("a source that takes the baton back wins against a destination that comes late") {
    Fixture f(1);
    Incoming in = f.incoming();
    must(f.outgoing().put(0, "state"));
    REQUIRE(f.baton.take_back(kSource));
    const auto taken = in.loaded(0);
    REQUIRE_FALSE(taken);
    CHECK(taken.error().code == ErrorCode::kAborted);
    CHECK(contains(taken.error().message, "the source kept the guest: epoch 2, held by 1"));
    CHECK(f.baton.held_by(kSource));
    CHECK_FALSE(in.await_ownership());
}

TEST_CASE("a baton that was offered, taken back and offered to somebody else is not taken") {
    Fixture f(1);
    Incoming in = f.incoming();
    must(f.outgoing().put(0, "state"));
    REQUIRE(f.baton.take_back(kSource));
    REQUIRE(f.baton.offer(kSource, 3));
    CHECK_FALSE(in.loaded(0));
    CHECK(f.baton.take(3));
}

TEST_CASE("exactly one of take and take_back wins, and both sides know which") {
    size_t taken = 0, kept = 0;
    for (int round = 0; round < 2000; ++round) {
        Fixture f(1);
        Incoming in = f.incoming();
        must(f.outgoing().put(0, "state"));
        bool source_has_it = false;
        std::thread source([&] {
            for (int spin = round % 16 * 20; spin > 0; --spin)
                static_cast<void>(f.baton.read());
            source_has_it = f.baton.take_back(kSource);
        });
        const auto result = in.loaded(0);
        source.join();
        const bool destination_has_it = result && *result;
        REQUIRE(source_has_it != destination_has_it);
        REQUIRE(f.baton.held_by(destination_has_it ? kDestination : kSource));
        (destination_has_it ? taken : kept) += 1;
    }
    CHECK(taken + kept == 2000);
}

TEST_CASE("a destination whose last section is loaded before the baton is offered waits for the offer") {
    Fixture f(1);
    Incoming in = f.incoming();
    must(f.area->put(0, kReal, "state")); // as if the source were between its put and its offer
    std::thread source([&] { f.baton.offer(kSource, kDestination); });
    CHECK(must(in.loaded(0)));
    source.join();
    CHECK(f.baton.held_by(kDestination));
}

TEST_CASE("a destination that waits for an offer stops when the source withdraws") {
    Fixture f(1);
    Incoming in(f.area, f.baton, kDestination, kReal, Deadline::never(), {});
    std::thread source([&] {
        f.area->withdraw();
        f.baton.ring();
    });
    CHECK_FALSE(in.loaded(0));
    source.join();
    CHECK(f.baton.held_by(kSource));
}

TEST_CASE("threads that load in parallel agree on the one that takes the baton") {
    constexpr uint32_t kThreads = 6;
    for (int round = 0; round < 50; ++round) {
        Fixture f(kThreads);
        Incoming in = f.incoming();
        Outgoing out = f.outgoing();
        std::atomic<size_t> takers{0}, owners{0}, saved{0};
        std::vector<std::thread> threads;
        for (uint32_t i = 0; i < kThreads; ++i) {
            threads.emplace_back([&, i] {
                if (out.put(i, "vcpu" + std::to_string(i))) saved.fetch_add(1);
            });
            threads.emplace_back([&, i] {
                const auto bytes = in.await(i);
                if (!bytes || *bytes != "vcpu" + std::to_string(i)) return;
                const auto taken = in.loaded(i);
                if (taken && *taken) takers.fetch_add(1);
                if (taken && (*taken || in.await_ownership())) owners.fetch_add(1);
            });
        }
        for (auto& thread : threads)
            thread.join();
        CHECK(saved == kThreads);
        CHECK(takers == 1);
        CHECK(owners == kThreads);
        CHECK(f.baton.held_by(kDestination));
    }
}

TEST_CASE("a refused state is told with its first reason, and nobody waits any longer") {
    Fixture f;
    Incoming in(f.area, f.baton, kDestination, kReal, Deadline::never(), {});
    std::thread other([&] { in.refuse(Error(ErrorCode::kRefused, "bad LAPIC")); });
    CHECK_FALSE(in.await_ownership());
    other.join();
    in.refuse(Error(ErrorCode::kRefused, "another reason"));
    CHECK(f.area->refusal() == "bad LAPIC");
    CHECK(f.baton.held_by(kSource));
}

TEST_CASE("a thread that was told it will never own the guest is told the truth") {
    // The deadline passes while the baton lies offered; another thread of this process loads the last
    // section only then.
    Fixture f(1);
    Incoming in = f.incoming(kReal, soon());
    must(f.outgoing().put(0, "state"));
    REQUIRE_FALSE(in.await_ownership());
    const auto late = in.loaded(0);
    REQUIRE_FALSE(late);
    CHECK(late.error().code == ErrorCode::kAborted);
    CHECK(f.baton.read().state == BatonState::kOffered);
    CHECK_FALSE(in.await_ownership());
}

TEST_CASE("a taking thread and one that gives up never disagree") {
    for (int round = 0; round < 2000; ++round) {
        Fixture f(1);
        Incoming in = f.incoming(kReal, Deadline::after(std::chrono::microseconds(round % 100)));
        must(f.outgoing().put(0, "state"));
        bool owner = false;
        std::thread other([&] { owner = in.await_ownership(); });
        const auto taken = in.loaded(0);
        other.join();
        REQUIRE(owner == (taken && *taken));
        REQUIRE(owner == f.baton.held_by(kDestination));
    }
}

TEST_CASE("the last vCPU that enters is waited for") {
    Fixture f(1);
    Incoming in = f.incoming();
    in.stamp_entered(2);
    CHECK_FALSE(in.await_entered(soon()));
    std::thread last([&] { in.stamp_entered(2); });
    CHECK(in.await_entered(patience()));
    last.join();
    CHECK(f.area->moment(Moment::kFirstEntered) <= f.area->moment(Moment::kLastEntered));
}

TEST_CASE("a fault asked for in a phase is met by the first who reaches it, once") {
    Fixture f;
    f.fault = FaultPoint(Phase::kTransferring, FaultAction::kFail, 0);
    Outgoing out = f.outgoing();
    const auto put = out.put(0, "state");
    REQUIRE_FALSE(put);
    CHECK(contains(put.error().message, "transferring"));
    CHECK_FALSE(f.area->is_put(0, kReal));
    must(out.put(0, "state"));

    Fixture g(1);
    must(g.outgoing().put(0, "state"));
    Incoming in(g.area, g.baton, kDestination, kReal, patience(),
        FaultPoint(Phase::kCommitting, FaultAction::kFail, 0));
    CHECK_FALSE(in.loaded(0));
    CHECK(g.baton.take_back(kSource));
}

TEST_CASE("a fault crosses in a message, and one of an unknown phase is none") {
    FaultPoint fault(Phase::kPausing, FaultAction::kFail, 17);
    FaultPoint back = FaultPoint::from(fault.to_message());
    CHECK(back.reached(Phase::kPreparing));
    CHECK_FALSE(back.reached(Phase::kPausing));
    CHECK(back.reached(Phase::kPausing));
    proto::Fault unknown;
    unknown.set_phase("lunch");
    unknown.set_action("fail");
    FaultPoint none = FaultPoint::from(unknown);
    for (const PhaseRow& r : kPhases)
        CHECK(none.reached(r.phase));
}

TEST_CASE("a fault that kills ends its victim before the phase goes on") {
    Child victim([] {
        ::pause();
        return 0;
    });
    FaultPoint fault(Phase::kCommitting, FaultAction::kKill, victim.pid());
    CHECK(fault.reached(Phase::kCommitting));
    CHECK(victim.wait() == -1);
}

} // namespace liveupdate::handoff
