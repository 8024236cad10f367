#include "vmm/kvm/pit_keeper.hpp"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "handoff/base/fd.hpp"

namespace liveupdate::vmm {
namespace {

constexpr uint64_t kPitHz = 1193182;
// A mode that KVM does not run a timer for.
constexpr __u8 kStoppedMode = 5;
// What KVM shows for a channel that nobody has programmed yet.
constexpr __u8 kUnprogrammedMode = 0xff;
constexpr uint32_t kTimerGsi = 0;
constexpr uint64_t kMostTicks = uint64_t{1} << 60; // no guest lives for so long

// What a guest that does not mask the line may be behind, if only it had no CPU: more is taken for a mistake.
constexpr uint64_t kPatienceNs = 10'000'000'000;
// How many interrupts a guest ends in that time if it takes any.
constexpr int64_t kEndedMeanwhile = 64;
// How many periods a line is masked before what falls due is forgotten, as KVM does: a guest may mask it for
// as long as it handles one interrupt.
constexpr uint64_t kMaskedPeriods = 4;
// For how many periods the keeper pays a guest that falls behind further, and leaves it to KVM thereafter.
constexpr uint64_t kTryPeriods = 64;
constexpr uint64_t kRestPeriods = 16 * kTryPeriods;

bool periodic(uint32_t mode) {
    return mode == 2 || mode == 3;
}
uint64_t period_ns(uint32_t count) {
    return (count == 0 ? 0x10000u : count) * 1'000'000'000ull / kPitHz;
}

void save_channel(const kvm_pit_channel_state& c, state::PitChannel& out) {
    out.set_count(c.count);
    out.set_latched_count(c.latched_count);
    out.set_count_latched(c.count_latched);
    out.set_status_latched(c.status_latched);
    out.set_status(c.status);
    out.set_read_state(c.read_state);
    out.set_write_state(c.write_state);
    out.set_write_latch(c.write_latch);
    out.set_rw_mode(c.rw_mode);
    out.set_mode(c.mode);
    out.set_bcd(c.bcd);
    out.set_gate(c.gate);
}

kvm_pit_channel_state load_channel(const state::PitChannel& in) {
    kvm_pit_channel_state c{};
    c.count = in.count();
    c.latched_count = static_cast<__u16>(in.latched_count());
    c.count_latched = static_cast<__u8>(in.count_latched());
    c.status_latched = static_cast<__u8>(in.status_latched());
    c.status = static_cast<__u8>(in.status());
    c.read_state = static_cast<__u8>(in.read_state());
    c.write_state = static_cast<__u8>(in.write_state());
    c.write_latch = static_cast<__u8>(in.write_latch());
    c.rw_mode = static_cast<__u8>(in.rw_mode());
    c.mode = static_cast<__u8>(in.mode());
    c.bcd = static_cast<__u8>(in.bcd());
    c.gate = static_cast<__u8>(in.gate());
    return c;
}

} // namespace

Result<void> PitKeeper::check(const state::Pit& in) {
    if (in.channel_size() != 3)
        return Error(ErrorCode::kRefused, "state section 'vm': the PIT has not three channels");
    for (const state::PitChannel& c : in.channel())
        if (c.count() > 0x10000 || (c.mode() > 5 && c.mode() != kUnprogrammedMode))
            return Error(ErrorCode::kRefused, "state section 'vm': a PIT channel is out of range");
    if (in.ticks_delivered() > kMostTicks || in.in_flight() > 1)
        return Error(ErrorCode::kRefused, "state section 'vm': the PIT's count of ticks is out of range");
    return {};
}

Result<void> PitKeeper::count_ticks(const Vm& vm) {
    TRY_ASSIGN(trigger_, fd::eventfd(0));
    TRY_ASSIGN(UniqueFd acks, fd::eventfd(0));
    TRY(vm.count_acks(kTimerGsi, trigger_.get(), acks.get()));
    acks_ = std::move(acks);
    return {};
}

void PitKeeper::expect_thaw(const Vm& vm) {
    const std::lock_guard lock(mutex_);
    if (acks_) take_over(vm);
}

// A timer that we did not set has been programmed by the guest, nobody knows when: it counts from now on.
void PitKeeper::follow(const kvm_pit_state2& pit, uint64_t now) {
    const auto& timer = pit.channels[0];
    if (is_ours(pit)) return;
    count_acks();
    running_ = {now, now, timer.count, timer.mode};
    ended_ = raised_ = 0;
    in_phase_ = true;
    audited_ = verifying_ = false;
    rest_until_ns_ = 0;
    begin_doubt(now);
}

bool PitKeeper::is_ours(const kvm_pit_state2& pit) const {
    const auto& timer = pit.channels[0];
    return running_.set_ns != 0 && running_.count == timer.count && running_.mode == timer.mode;
}

int64_t PitKeeper::periods_since(uint64_t then, uint64_t now) const {
    if (!periodic(running_.mode) || now < then) return 0;
    return static_cast<int64_t>((now - then) / period_ns(running_.count));
}

int64_t PitKeeper::owed(uint64_t now) const {
    return periods_since(running_.reference_ns, now) - ended_;
}

int64_t PitKeeper::in_flight(uint64_t now) const {
    return raised_ + periods_since(running_.set_ns, now) - ended_;
}

void PitKeeper::count_acks() {
    uint64_t count = 0;
    if (!acks_ || ::read(acks_.get(), &count, sizeof(count)) != sizeof(count)) return;
    ended_ += static_cast<int64_t>(count);
    acks_seen_ += static_cast<int64_t>(count);
    masked_ns_ = 0;
}

void PitKeeper::expect_freeze(const Vm& vm) {
    const std::lock_guard lock(mutex_);
    const auto pit = vm.pit();
    if (!acks_ || !pit) return;
    const uint64_t now = monotonic_ns();
    follow(*pit, now);
    if (!periodic(running_.mode)) return;
    count_acks();
    if (!std::exchange(audited_, true))
        forget(owed(now) - 1, now); // masked, or left alone, before anybody looked
    begin_doubt(now);
    expecting_ = true;
    if (next_look_ns_ == 0) next_look_ns_ = now;
}

void PitKeeper::expect_none() {
    const std::lock_guard lock(mutex_);
    expecting_ = false;
}

Result<void> PitKeeper::freeze(const Vm& vm, state::Pit& out) {
    const std::lock_guard lock(mutex_);
    TRY_ASSIGN(kvm_pit_state2 pit, vm.pit());
    follow(pit, monotonic_ns());
    kvm_pit_state2 stopped = pit;
    stopped.channels[0].mode = kStoppedMode;
    TRY(vm.set_pit(stopped)); // the tick that is due right now has been raised when this returns
    const uint64_t now = monotonic_ns();
    count_acks();
    if (!acks_)
        forget(owed(now), now);
    else if (owed(now) > 1 && (!plausible(now) || masked_for_long(vm, now)))
        forget(owed(now) - 1, now);
    const bool one_in_flight = acks_ && owed(now) > 0 && in_flight(now) > 0;
    out.clear_channel();
    for (const auto& channel : pit.channels)
        save_channel(channel, *out.add_channel());
    out.set_flags(pit.flags);
    out.set_reference_ns(running_.reference_ns);
    out.set_ticks_delivered(static_cast<uint64_t>(ended_) + (one_in_flight ? 1 : 0));
    out.set_in_flight(one_in_flight ? 1 : 0);
    next_look_ns_ = 0;
    return {};
}

Result<void> PitKeeper::thaw(const Vm& vm, const state::Pit& in) {
    const std::lock_guard lock(mutex_);
    for (int i = 0; i < 3; ++i)
        loaded_.channels[i] = load_channel(in.channel(i));
    loaded_.flags = in.flags();
    const auto& timer = loaded_.channels[0];
    TRY(vm.set_pit(loaded_));
    const uint64_t now = monotonic_ns();
    running_ = {in.reference_ns(), now, timer.count, timer.mode};
    raised_ = static_cast<int64_t>(in.ticks_delivered());
    ended_ = raised_ - static_cast<int64_t>(in.in_flight());
    count_acks(); // a vCPU that runs already may have ended what was in flight
    audited_ = true;
    verifying_ = false;
    rest_until_ns_ = 0;
    begin_doubt(now);
    in_phase_ = !periodic(running_.mode) || now < running_.reference_ns;
    next_look_ns_ = now;
    if (in_phase_) return {};
    raise(vm, now);
    boundary_ns_ =
        now + period_ns(running_.count) - (now - running_.reference_ns) % period_ns(running_.count);
    return {};
}

// At most one interrupt: the line is an edge, and a second one before the guest has taken the first is lost.
// While one may be in flight, only where another is owed beside it: then it does no harm if both arrive.
void PitKeeper::raise(const Vm& vm, uint64_t now) {
    const bool maybe_in_flight = in_flight(now) > 0;
    if (owed(now) < (maybe_in_flight ? 2 : 1) || (maybe_in_flight && !paying_)) return;
    const auto seen = vm.pulse_irq(kTimerGsi);
    if (!seen || *seen) ++raised_;
}

Deadline PitKeeper::wake_at() const {
    const std::lock_guard lock(mutex_);
    return next_look_ns_ == 0 ? Deadline::never() : Deadline::at_ns(next_look_ns_);
}

int PitKeeper::wake_fd() const {
    const std::lock_guard lock(mutex_);
    return paying_ && next_look_ns_ != 0 && owed(monotonic_ns()) > 1 ? acks_.get() : -1;
}

void PitKeeper::due(const Vm& vm) {
    const std::lock_guard lock(mutex_);
    if (next_look_ns_ == 0) return;
    const uint64_t now = monotonic_ns();
    const int64_t ended = ended_;
    count_acks();
    if (now < next_look_ns_ && (!paying_ || ended == ended_)) return;
    next_look_ns_ = 0;
    const auto pit = vm.pit();
    if (!pit) return;
    if (!is_ours(*pit) || !periodic(running_.mode)) { // the guest has programmed the timer meanwhile
        hand_back(vm, now);
        return;
    }
    look(vm, *pit, now);
}

// As long as anything is in doubt, more than once in each period.
void PitKeeper::look(const Vm& vm, const kvm_pit_state2& pit, uint64_t now) {
    const uint64_t period = period_ns(running_.count);
    const bool behind = owed(now) > in_flight(now);
    if (!paying_ && acks_ && (!in_phase_ || (behind && now >= rest_until_ns_))) take_over(vm);
    if (!in_phase_ && now >= boundary_ns_) restart(vm, pit);
    now = monotonic_ns();
    take_stock(vm, now);
    raise(vm, now);
    if (paying_ && in_phase_ && owed(now) <= 0) {
        hand_back(vm, now);
        begin_doubt(now); // the next tick may have become one with a last one of ours
        verifying_ = true;
    } else if (paying_ && in_phase_ && !worth_trying(now)) {
        hand_back(vm, now);
        rest_until_ns_ = next_look_ns_ = now + kRestPeriods * period;
    }
    const bool in_doubt = acks_ && !clean_ && (verifying_ || expecting_);
    if (paying_ || in_doubt || !in_phase_) next_look_ns_ = now + period / 2;
}

// A guest without CPU takes more from KVM, which raises one as soon as another was ended.
bool PitKeeper::worth_trying(uint64_t now) {
    if (now - tried_ns_ < kTryPeriods * period_ns(running_.count)) return true;
    tried_ns_ = now;
    return owed(now) < std::exchange(owed_when_tried_, owed(now));
}

// At a boundary: KVM's timer begins a period here.
void PitKeeper::restart(const Vm& vm, const kvm_pit_state2& pit) {
    if (!vm.set_pit(pit)) return;
    const uint64_t now = monotonic_ns();
    raised_ += periods_since(running_.set_ns, now);
    running_.set_ns = now;
    in_phase_ = true;
}

void PitKeeper::take_stock(const Vm& vm, uint64_t now) {
    const int64_t left = paying_ ? owed(now) : in_flight(now);
    const int64_t stood_still = floor_.look(left, acks_seen_);
    if (left <= 0) {
        clean_ = true;
        if (!paying_) verifying_ = false;
        return;
    }
    if (masked_for_long(vm, now) ||
        (now - doubt_ns_ >= kPatienceNs && acks_seen_ - acks_seen_at_doubt_ < kEndedMeanwhile)) {
        forget(owed(now), now);
        set_in_flight(0, now);
        clean_ = true;
    } else if (stood_still > 0) {
        floor_.forget();
        if (paying_) {
            set_in_flight(0, now); // two became one
        } else if (verifying_) {
            take_over(vm);
        } else {
            forget(stood_still, now);
            clean_ = true;
        }
    }
}

// KVM forgets what it owes; from here on each tick raises an interrupt, taken or not, and the rest is ours.
void PitKeeper::take_over(const Vm& vm) {
    if (!vm.set_pit_reinject(false)) return;
    const uint64_t now = monotonic_ns();
    set_in_flight(std::min<int64_t>(in_flight(now), 1), now);
    paying_ = true;
    verifying_ = false;
    tried_ns_ = now;
    owed_when_tried_ = INT64_MAX;
}

// KVM remembers again what the guest has not taken from now on.
void PitKeeper::hand_back(const Vm& vm, uint64_t now) {
    if (!paying_ || !vm.set_pit_reinject(true)) return;
    set_in_flight(std::clamp<int64_t>(owed(now), 0, 1), now);
    paying_ = false;
}

// Whether the line has been masked everywhere, and no interrupt been ended, for some periods: KVM too forgets
// what fell due while it was masked.
bool PitKeeper::masked_for_long(const Vm& vm, uint64_t now) {
    const auto pic = vm.irqchip(KVM_IRQCHIP_PIC_MASTER);
    const auto ioapic = vm.irqchip(KVM_IRQCHIP_IOAPIC);
    if (!pic || !ioapic) return false;
    const auto masked = [&](int pin) { return ioapic->chip.ioapic.redirtbl[pin].fields.mask != 0; };
    if ((pic->chip.pic.imr & 1) == 0 || !masked(0) || !masked(2)) {
        masked_ns_ = 0;
        return false;
    }
    if (masked_ns_ == 0) masked_ns_ = now;
    return now - masked_ns_ >= kMaskedPeriods * period_ns(running_.count);
}

bool PitKeeper::plausible(uint64_t now) const {
    return owed(now) <= static_cast<int64_t>(kPatienceNs / period_ns(running_.count));
}

void PitKeeper::forget(int64_t count, uint64_t now) {
    ended_ += std::max<int64_t>(count, 0);
    if (in_flight(now) < 0) set_in_flight(0, now);
    floor_.forget();
}

void PitKeeper::set_in_flight(int64_t count, uint64_t now) {
    raised_ = ended_ + count - periods_since(running_.set_ns, now);
}

void PitKeeper::begin_doubt(uint64_t now) {
    clean_ = false;
    doubt_ns_ = now;
    acks_seen_at_doubt_ = acks_seen_;
    masked_ns_ = 0;
    floor_.forget();
}

} // namespace liveupdate::vmm
