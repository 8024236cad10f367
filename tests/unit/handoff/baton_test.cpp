#include "handoff/baton.hpp"

#include <doctest/doctest.h>
#include <sched.h>

#include <thread>

#include "handoff/base/fd.hpp"
#include "tests/unit/handoff/support.hpp"

namespace liveupdate::handoff {
namespace {

constexpr uint64_t kRounds = 100'000;

Baton fresh_baton() {
    const UniqueFd segment = must(Baton::create_segment());
    return must(Baton::map(segment.get()));
}

// What the players share beside the baton. `turns` is plain on purpose: only the owner touches it, so a lost
// count, or TSan, tells of a second owner.
struct Ledger {
    std::atomic<int> inside{0};
    std::atomic<uint64_t> intrusions{0};
    std::atomic<uint64_t> takes{0};
    std::atomic<uint64_t> takes_back{0};
    std::atomic<uint64_t> counted{0};
    std::atomic<bool> over{false};
    uint64_t turns = 0;
};

void take_turn(Ledger& ledger) {
    if (ledger.inside.fetch_add(1) != 0) ledger.intrusions.fetch_add(1);
    ++ledger.turns;
    ledger.counted.fetch_add(1);
    if (ledger.turns >= kRounds) ledger.over.store(true);
    ledger.inside.fetch_sub(1);
}

// Plays until kRounds turns were taken: an owner takes its turn, offers the baton to the next player and at
// once, or a little later, tries to take it back; everybody else tries to take it.
void play(Baton& baton, Participant me, Participant players, Ledger& ledger) {
    const auto heir = static_cast<Participant>(me % players + 1);
    for (uint64_t round = 0; !ledger.over.load(); ++round) {
        if (baton.take(me)) {
            ledger.takes.fetch_add(1);
        } else if (!baton.held_by(me)) {
            ::sched_yield(); // the heir may be waiting for this core
            continue;
        }
        take_turn(ledger);
        if (!baton.offer(me, heir)) ledger.intrusions.fetch_add(1);
        for (uint64_t spin = round % 8; spin > 0; --spin)
            ::sched_yield();
        if (!baton.take_back(me)) continue;
        ledger.takes_back.fetch_add(1);
        take_turn(ledger);
    }
}

void check_game(const Baton& baton, const Ledger& ledger) {
    CHECK(ledger.intrusions == 0);
    CHECK(ledger.turns >= kRounds);
    CHECK(ledger.turns == ledger.counted);
    CHECK(ledger.takes > 0);
    CHECK(ledger.takes_back > 0);
    // Every change of hands raised the epoch by one, and nothing else did.
    CHECK(baton.read().epoch == 1 + ledger.takes + ledger.takes_back);
}

} // namespace

TEST_CASE("a baton goes from claim over offer to take") {
    Baton baton = fresh_baton();
    CHECK(baton.read() == BatonWord{0, 0, 0, BatonState::kFree});
    CHECK(baton.claim(1));
    CHECK(baton.read() == BatonWord{1, 1, 0, BatonState::kHeld});
    CHECK(baton.offer(1, 2));
    CHECK(baton.read() == BatonWord{1, 1, 2, BatonState::kOffered});
    CHECK_FALSE(baton.held_by(1));
    CHECK_FALSE(baton.held_by(2));
    CHECK(baton.take(2));
    CHECK(baton.read() == BatonWord{2, 2, 0, BatonState::kHeld});
    CHECK(baton.held_by(2));
    CHECK_FALSE(baton.held_by(1));
}

TEST_CASE("only a free baton can be claimed") {
    Baton baton = fresh_baton();
    REQUIRE(baton.claim(1));
    CHECK_FALSE(baton.claim(1));
    CHECK_FALSE(baton.claim(2));
    REQUIRE(baton.offer(1, 2));
    CHECK_FALSE(baton.claim(2));
}

TEST_CASE("only the owner offers, only the heir takes, only the offerer takes back") {
    Baton baton = fresh_baton();
    CHECK_FALSE(baton.offer(1, 2));
    CHECK_FALSE(baton.take(1));
    CHECK_FALSE(baton.take_back(1));
    REQUIRE(baton.claim(1));
    CHECK_FALSE(baton.offer(2, 1));
    CHECK_FALSE(baton.take(1));
    CHECK_FALSE(baton.take_back(1));
    REQUIRE(baton.offer(1, 2));
    CHECK_FALSE(baton.offer(1, 3));
    CHECK_FALSE(baton.take(1));
    CHECK_FALSE(baton.take(3));
    CHECK_FALSE(baton.take_back(2));
    CHECK(baton.read() == BatonWord{1, 1, 2, BatonState::kOffered});
}

TEST_CASE("a take that comes after the source has taken the baton back fails") {
    Baton baton = fresh_baton();
    REQUIRE(baton.claim(1));
    REQUIRE(baton.offer(1, 2));
    REQUIRE(baton.take_back(1));
    CHECK_FALSE(baton.take(2));
    CHECK(baton.held_by(1));
    CHECK(baton.read().epoch == 2);
}

TEST_CASE("a take_back that comes after the destination has taken fails") {
    Baton baton = fresh_baton();
    REQUIRE(baton.claim(1));
    REQUIRE(baton.offer(1, 2));
    REQUIRE(baton.take(2));
    CHECK_FALSE(baton.take_back(1));
    CHECK(baton.held_by(2));
}

TEST_CASE("seize takes the baton of the dead and only in the state they were seen in") {
    Baton baton = fresh_baton();
    REQUIRE(baton.claim(1));
    const BatonWord held = baton.read();
    REQUIRE(baton.offer(1, 2));
    const BatonWord offered = baton.read();
    CHECK_FALSE(baton.seize(held, 3));
    CHECK(baton.seize(offered, 3));
    CHECK(baton.held_by(3));
    CHECK(baton.read().epoch == offered.epoch + 1);
    CHECK_FALSE(baton.seize(offered, 4));
    CHECK_FALSE(baton.take(2));
    CHECK_FALSE(baton.take_back(1));
}

TEST_CASE("a word from an earlier epoch seizes nothing though owner and state are the same") {
    Baton baton = fresh_baton();
    REQUIRE(baton.claim(1));
    const BatonWord before = baton.read();
    REQUIRE(baton.offer(1, 2));
    REQUIRE(baton.take_back(1));
    CHECK_FALSE(baton.seize(before, 3));
    CHECK(baton.held_by(1));
}

TEST_CASE("a word packs and unpacks and tells itself in words") {
    const BatonWord word{0xfffffffe, kMaxParticipant, 1, BatonState::kOffered};
    CHECK(BatonWord::unpack(word.pack()) == word);
    CHECK(to_string(BatonWord{3, 1, 2, BatonState::kOffered}) == "epoch 3, offered by 1 to 2");
    CHECK(to_string(BatonWord{4, 2, 0, BatonState::kHeld}) == "epoch 4, held by 2");
    CHECK(to_string(BatonWord{}) == "epoch 0, free");
    CHECK(to_string(BatonWord::unpack(0xf)) == "epoch 0, damaged");
}

TEST_CASE("a wait ends when the word is accepted, and gives it") {
    Baton baton = fresh_baton();
    REQUIRE(baton.claim(1));
    std::thread other([&] { baton.offer(1, 2); });
    const BatonWord seen =
        baton.wait([](BatonWord now) { return now.state == BatonState::kOffered; }, Deadline::never());
    other.join();
    CHECK(seen == BatonWord{1, 1, 2, BatonState::kOffered});
}

TEST_CASE("a ring makes a waiter look again") {
    Baton baton = fresh_baton();
    std::atomic<bool> flag{false};
    std::thread other([&] {
        flag = true;
        baton.ring();
    });
    baton.wait([&](BatonWord) { return flag.load(); }, Deadline::never());
    other.join();
    CHECK(flag);
}

TEST_CASE("a wait for what never happens ends at its deadline") {
    Baton baton = fresh_baton();
    int asked = 0;
    const BatonWord seen = baton.wait([&](BatonWord) { return ++asked < 0; }, soon());
    CHECK(seen.state == BatonState::kFree);
    CHECK(asked > 0);
}

TEST_CASE("threads that race for the baton are never inside together") {
    for (const Participant players : {Participant{2}, Participant{4}}) {
        Baton baton = fresh_baton();
        Ledger ledger;
        REQUIRE(baton.claim(1));
        std::vector<std::thread> threads;
        for (Participant me = 1; me <= players; ++me)
            threads.emplace_back([&, me] { play(baton, me, players, ledger); });
        for (auto& thread : threads)
            thread.join();
        check_game(baton, ledger);
    }
}

TEST_CASE("processes that race for the baton are never inside together") {
    const UniqueFd segment = must(Baton::create_segment());
    const UniqueFd page = must(create_sealed_memfd("ledger", 4096));
    const SharedMapping shared = must(SharedMapping::map(page.get(), 0, 4096, MapMode::kShared));
    auto& ledger = *new (shared.data()) Ledger;
    Baton baton = must(Baton::map(segment.get()));
    REQUIRE(baton.claim(1));
    constexpr Participant kPlayers = 3;
    std::vector<Child> children;
    for (Participant me = 1; me <= kPlayers; ++me)
        children.emplace_back([&, me] {
            auto own = Baton::map(segment.get());
            if (!own) return 1;
            play(*own, me, kPlayers, ledger);
            return 0;
        });
    for (Child& child : children)
        CHECK(child.wait() == 0);
    check_game(baton, ledger);
}

TEST_CASE("an owner that is killed keeps the baton until somebody seizes it") {
    const UniqueFd segment = must(Baton::create_segment());
    Baton baton = must(Baton::map(segment.get()));
    Child owner([&] {
        auto own = Baton::map(segment.get());
        if (own && own->claim(1)) ::pause();
        return 1;
    });
    const BatonWord held =
        baton.wait([](BatonWord now) { return now.state == BatonState::kHeld; }, patience());
    REQUIRE(held.owner == 1);
    ::kill(owner.pid(), SIGKILL);
    CHECK(owner.wait() == -1);
    CHECK(baton.read() == held);
    CHECK_FALSE(baton.claim(2));
    CHECK(baton.seize(held, 2));
    CHECK(baton.held_by(2));
}

TEST_CASE("a segment that is no baton is refused in words") {
    const auto refusal_of = [](const UniqueFd& fd) {
        const auto mapped = Baton::map(fd.get());
        REQUIRE_FALSE(mapped);
        CHECK(mapped.error().code == ErrorCode::kRefused);
        return mapped.error().message;
    };
    CHECK(contains(refusal_of(must(create_sealed_memfd("small", 2048))), "2048 bytes, not 4096"));
    CHECK(contains(refusal_of(must(create_sealed_memfd("empty", 4096))), "magic number"));
    CHECK(contains(refusal_of(must(fd::memfd_create("unsealed", 0))), "without the seals"));
    CHECK(contains(refusal_of(must(fd::eventfd(0))), "not a memfd"));
}

} // namespace liveupdate::handoff
