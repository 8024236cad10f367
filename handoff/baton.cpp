#include "handoff/baton.hpp"

#include <new>

#include "handoff/base/futex.hpp"

namespace liveupdate::handoff {
namespace {

// How often a waiter looks that nobody wakes.
constexpr auto kLook = std::chrono::milliseconds(1);

} // namespace

// Shared between processes of different builds: the layout never changes, only grows behind.
struct Baton::Segment {
    static constexpr uint64_t kMagic = 0x4c555f4241544f4e; // "LU_BATON"
    static constexpr uint64_t kSize = 4096;
    uint64_t magic;
    std::atomic<uint64_t> word;
    mutable std::atomic<uint32_t> bell; // counts changes; what waiters sleep on
};
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free);

std::string to_string(const BatonWord& word) {
    std::string text = "epoch " + std::to_string(word.epoch) + ", ";
    switch (word.state) {
    case BatonState::kFree:
        return text + "free";
    case BatonState::kHeld:
        return text + "held by " + std::to_string(word.owner);
    case BatonState::kOffered:
        return text + "offered by " + std::to_string(word.owner) + " to " + std::to_string(word.heir);
    }
    return text + "damaged";
}

Result<UniqueFd> Baton::create_segment(uint32_t epoch) {
    TRY_ASSIGN(UniqueFd file, create_sealed_memfd("liveupdate-baton", Segment::kSize));
    TRY_ASSIGN(
        const SharedMapping mapping, SharedMapping::map(file.get(), 0, Segment::kSize, MapMode::kShared));
    auto* segment = new (mapping.data()) Segment{};
    segment->magic = Segment::kMagic;
    segment->word = BatonWord{epoch, 0, 0, BatonState::kFree}.pack();
    return file;
}

Result<Baton> Baton::map(int fd) {
    TRY_ASSIGN(const uint64_t size, sealed_size(fd, "the baton segment"));
    if (size != Segment::kSize)
        return Error(ErrorCode::kRefused, "the baton segment has " + std::to_string(size) + " bytes, not " +
                                              std::to_string(Segment::kSize));
    TRY_ASSIGN(SharedMapping mapping, SharedMapping::map(fd, 0, size, MapMode::kShared));
    Baton baton(std::move(mapping));
    if (baton.segment().magic != Segment::kMagic)
        return Error(ErrorCode::kRefused, "the baton segment does not begin with its magic number");
    return baton;
}

Baton::Segment& Baton::segment() const {
    return *reinterpret_cast<Segment*>(mapping_.data());
}

BatonWord Baton::read() const {
    return BatonWord::unpack(segment().word.load(std::memory_order_acquire));
}

bool Baton::held_by(Participant me) const {
    const BatonWord word = read();
    return word.state == BatonState::kHeld && word.owner == me;
}

bool Baton::swap(BatonWord expected, BatonWord wanted) {
    uint64_t seen = expected.pack();
    return segment().word.compare_exchange_strong(seen, wanted.pack(), std::memory_order_acq_rel);
}

bool Baton::claim(Participant me) {
    const BatonWord now = read();
    return now.state == BatonState::kFree && swap(now, {now.epoch + 1, me, 0, BatonState::kHeld});
}

bool Baton::offer(Participant me, Participant heir) {
    const BatonWord now = read();
    return now.state == BatonState::kHeld && now.owner == me &&
           swap(now, {now.epoch, me, heir, BatonState::kOffered});
}

bool Baton::take(Participant me) {
    const BatonWord now = read();
    return now.state == BatonState::kOffered && now.heir == me &&
           swap(now, {now.epoch + 1, me, 0, BatonState::kHeld});
}

bool Baton::take_back(Participant me) {
    const BatonWord now = read();
    return now.state == BatonState::kOffered && now.owner == me &&
           swap(now, {now.epoch + 1, me, 0, BatonState::kHeld});
}

bool Baton::seize(BatonWord dead, Participant next) {
    return swap(dead, {dead.epoch + 1, next, 0, BatonState::kHeld});
}

BatonWord Baton::wait(const std::function<bool(BatonWord)>& done, Deadline deadline) const {
    for (;;) {
        const uint32_t rung = segment().bell.load(std::memory_order_acquire);
        const BatonWord now = read();
        if (done(now) || deadline.passed()) return now;
        futex_wait(&segment().bell, rung, deadline.earlier(Deadline::after(kLook)), FutexScope::kShared);
    }
}

void Baton::ring() const {
    segment().bell.fetch_add(1, std::memory_order_acq_rel);
    futex_wake_all(&segment().bell, FutexScope::kShared);
}

} // namespace liveupdate::handoff
