#include "handoff/transfer.hpp"

#include <chrono>
#include <thread>

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

#include "handoff/base/futex.hpp"

namespace liveupdate::handoff {
namespace {

// How often somebody who is in no hurry looks; he need not be woken in the blackout then.
constexpr auto kLook = std::chrono::microseconds(500);
constexpr auto kOfferMoment = std::chrono::microseconds(100);

Result<size_t> find_section(const TransferArea& area, std::string_view kind, uint32_t instance) {
    const auto& sections = area.sections();
    for (size_t i = 0; i < sections.size(); ++i)
        if (sections[i].kind == kind && sections[i].instance == instance) return i;
    return Error(ErrorCode::kRefused,
        "state section '" + std::string(kind) + "/" + std::to_string(instance) + "' is missing");
}

uint64_t host_tsc() {
#if defined(__x86_64__)
    return __rdtsc();
#else
    return 0;
#endif
}

} // namespace

Outgoing::Outgoing(
    TransferArea& area, Baton& baton, Participant me, Participant heir, TransferRun run, FaultPoint& fault)
    : area_(area), baton_(baton), me_(me), heir_(heir), run_(run), fault_(fault) {}

Result<size_t> Outgoing::find(std::string_view kind, uint32_t instance) const {
    return find_section(area_, kind, instance);
}

Result<void> Outgoing::put(size_t index, std::string_view bytes) {
    if (put_.load(std::memory_order_relaxed) == 0)
        TRY(fault_.reached(run_ == TransferRun::kReal ? Phase::kTransferring : Phase::kRehearsing));
    TRY(area_.put(index, run_, bytes));
    if (put_.fetch_add(1, std::memory_order_acq_rel) + 1 < area_.sections().size()) return {};
    if (run_ == TransferRun::kTrial) return {};
    area_.stamp(Moment::kOffered);
    if (!baton_.offer(me_, heir_))
        return Error(ErrorCode::kInternal, "the baton could not be offered: " + to_string(baton_.read()));
    return {};
}

void Outgoing::stamp_stopped() {
    if (run_ == TransferRun::kTrial) return;
    area_.stamp_first(Moment::kFirstStopped);
    area_.stamp(Moment::kLastStopped);
}

Incoming::Incoming(std::shared_ptr<TransferArea> area, Baton& baton, Participant me, TransferRun run,
    Deadline deadline, FaultPoint fault)
    : area_(std::move(area)), baton_(baton), me_(me), run_(run), deadline_(deadline), fault_(fault),
      epoch_(baton.read().epoch) {}

Result<size_t> Incoming::find(std::string_view kind, uint32_t instance) const {
    return find_section(*area_, kind, instance);
}

Result<bool> Incoming::loaded(size_t index) {
    area_->stamp_loaded(index);
    if (loaded_.fetch_add(1, std::memory_order_acq_rel) + 1 < area_->sections().size()) return false;
    if (run_ == TransferRun::kTrial) return false;
    return take();
}

Result<bool> Incoming::take() {
    await_offer();
    TRY(fault_.reached(Phase::kCommitting));
    uint32_t open = kOpen;
    if (!door_.compare_exchange_strong(open, kTaking))
        return Error(ErrorCode::kAborted, "this destination has stopped waiting for the guest");
    const bool taken = baton_.take(me_);
    if (taken) {
        area_->record(Moment::kTakenTsc, host_tsc());
        area_->stamp(Moment::kTaken);
    }
    door_.store(taken ? kTaken : kShut);
    // A wake costs tens of microseconds where an idle CPU has to be interrupted: only if somebody sleeps.
    if (sleepers_.load() > 0) futex_wake_all(&door_, FutexScope::kPrivate);
    if (!taken) return Error(ErrorCode::kAborted, "the source kept the guest: " + to_string(baton_.read()));
    return true;
}

// The last section is put a moment before the baton is offered, without a wake: spin for that moment.
void Incoming::await_offer() const {
    const auto decided = [&](BatonWord now) {
        return now.state == BatonState::kOffered || now.epoch != epoch_ || area_->withdrawn();
    };
    const Deadline moment = Deadline::after(kOfferMoment).earlier(deadline_);
    while (!decided(baton_.read()) && !moment.passed())
        std::this_thread::yield();
    baton_.wait(decided, deadline_);
}

bool Incoming::await_ownership() const {
    sleepers_.fetch_add(1);
    uint32_t seen = door_.load();
    while (!settled(seen)) {
        futex_wait(&door_, seen, Deadline::after(kLook).earlier(deadline_), FutexScope::kPrivate);
        seen = door_.load();
    }
    sleepers_.fetch_sub(1);
    return door_.load() == kTaken;
}

bool Incoming::watch_ownership() const {
    while (!settled(door_.load()))
        std::this_thread::sleep_for(kLook);
    return door_.load() == kTaken;
}

// Shuts the door when there is nothing left to wait for: nobody may take the baton behind the back of a
// thread that goes by the answer.
bool Incoming::settled(uint32_t seen) const {
    if (seen == kTaken || seen == kShut) return true;
    if (seen == kTaking) return false;
    const bool hopeless =
        baton_.read().epoch != epoch_ || area_->refused() || area_->withdrawn() || deadline_.passed();
    return hopeless && door_.compare_exchange_strong(seen, kShut);
}

bool Incoming::await_entered(Deadline deadline) const {
    while (area_->moment(Moment::kLastEntered) == 0 && !deadline.passed())
        std::this_thread::sleep_for(kLook);
    return area_->moment(Moment::kLastEntered) != 0;
}

void Incoming::refuse(const Error& why) {
    if (!area_->refused()) area_->refuse(why.message);
    baton_.ring();
}

void Incoming::stamp_entered(size_t vcpus) {
    area_->stamp_first(Moment::kFirstEntered);
    if (entered_.fetch_add(1, std::memory_order_relaxed) + 1 == vcpus) area_->stamp(Moment::kLastEntered);
}

} // namespace liveupdate::handoff
