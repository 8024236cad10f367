// The baton: who may execute guest vCPUs, as one atomic word in a shared segment.
//
// Invariant: at any instant at most one process holds it, and a vCPU thread enters KVM_RUN only while its
// process does. The word moves by compare-and-swap alone; whoever loses a swap stands back. No message,
// timeout or supervisor is needed for safety.
//
//   free ──claim──► held(A) ──offer──► offered(A to B) ──take──► held(B)
//                      ▲                     │
//                      └────── take_back ────┘
//   held(A), offered(A to B) ──seize──► held(C)     only after A (and B) are known to be dead
//
// Every change of the holder raises the epoch, so a late swap that expects an earlier word always fails.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"
#include "handoff/shared_memory.hpp"

namespace liveupdate::handoff {

// A VMM's number in the life of one guest: 1, 2, 3...; 0 is nobody. At most kMaxParticipant.
using Participant = uint16_t;
inline constexpr Participant kMaxParticipant = 0x3fff;
// Of the one that comes after: begins anew behind the last.
constexpr Participant next_participant(Participant current) {
    return static_cast<Participant>(current % kMaxParticipant + 1);
}
static_assert(next_participant(0) == 1 && next_participant(kMaxParticipant) == 1);

enum class BatonState : uint8_t { kFree = 0, kHeld = 1, kOffered = 2 };

struct BatonWord {
    uint32_t epoch = 0;
    Participant owner = 0;
    Participant heir = 0; // only while offered
    BatonState state = BatonState::kFree;

    // epoch:32 | owner:14 | heir:14 | state:4
    constexpr uint64_t pack() const {
        return uint64_t{epoch} << 32 | uint64_t{owner} << 18 | uint64_t{heir} << 4 |
               static_cast<uint64_t>(state);
    }
    static constexpr BatonWord unpack(uint64_t w) {
        return {static_cast<uint32_t>(w >> 32), static_cast<Participant>(w >> 18 & kMaxParticipant),
            static_cast<Participant>(w >> 4 & kMaxParticipant), static_cast<BatonState>(w & 0xf)};
    }
    constexpr bool operator==(const BatonWord&) const = default;
};
static_assert(BatonWord::unpack(BatonWord{7, 0x3fff, 5, BatonState::kOffered}.pack()) ==
              BatonWord{7, 0x3fff, 5, BatonState::kOffered});

// "epoch 3, offered by 1 to 2"
std::string to_string(const BatonWord& word);

// The segment is one page, a sealed memfd that every VMM of the guest and its supervisor map.
class Baton {
public:
    // Free, with the epoch that the first holder's follows.
    static Result<UniqueFd> create_segment(uint32_t epoch = 0);
    // Refuses an fd that is not a sealed memfd of the right size or not a baton.
    static Result<Baton> map(int fd);

    BatonWord read() const;
    bool held_by(Participant me) const;

    bool claim(Participant me);                   // free -> held(me)
    bool offer(Participant me, Participant heir); // held(me) -> offered(me to heir)
    bool take(Participant me);                    // offered(? to me) -> held(me)
    bool take_back(Participant me);               // offered(me to ?) -> held(me)
    // The caller has seen the pidfds of every process named in `dead` say that all its threads are gone.
    bool seize(BatonWord dead, Participant next);

    // Blocks until `done` accepts the word, or the deadline has passed; returns the word as it is then. A
    // change wakes nobody by itself (a wake in the blackout is paid by the guest): a waiter looks every
    // millisecond, and at once after a ring.
    BatonWord wait(const std::function<bool(BatonWord)>& done, Deadline deadline) const;
    // Makes all waiters look again.
    void ring() const;

private:
    struct Segment;
    explicit Baton(SharedMapping mapping) : mapping_(std::move(mapping)) {}
    Segment& segment() const;
    bool swap(BatonWord expected, BatonWord wanted);

    SharedMapping mapping_;
};

} // namespace liveupdate::handoff
