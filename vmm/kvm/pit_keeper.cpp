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

// How many interrupts a guest ends, at the most, without a moment in which nothing is unended.
constexpr int64_t kEndedMeanwhile = 64;
// What a guest that does not mask the line may be behind, if only it had no CPU: more is taken for a mistake.
constexpr uint64_t kPatienceNs = 10'000'000'000;

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
    return {};
}

Result<void> PitKeeper::count_ticks(const Vm& vm) {
    TRY_ASSIGN(trigger_, fd::eventfd(0));
    TRY_ASSIGN(UniqueFd acks, fd::eventfd(0));
    TRY(vm.count_acks(kTimerGsi, trigger_.get(), acks.get()));
    acks_ = std::move(acks);
    return {};
}

// A timer that we did not set has been programmed by the guest, nobody knows when: it counts from now on.
void PitKeeper::follow(const kvm_pit_state2& pit, uint64_t now) {
    const auto& timer = pit.channels[0];
    if (is_ours(pit)) return;
    running_ = {now, 0, now, timer.count, timer.mode};
    next_boundary_ns_ = 0;
    raised_ -= unended(now);
    forget_window();
    clean_ = in_phase_ = true;
    audited_ = false;
}

bool PitKeeper::is_ours(const kvm_pit_state2& pit) const {
    const auto& timer = pit.channels[0];
    return running_.set_ns != 0 && running_.count == timer.count && running_.mode == timer.mode;
}

uint64_t PitKeeper::ticks_since_set(uint64_t now) const {
    if (!periodic(running_.mode) || now < running_.set_ns) return 0;
    return (now - running_.set_ns) / period_ns(running_.count);
}

// Interrupts that were due or raised and that the guest has not ended: one in flight, the rest is owed.
int64_t PitKeeper::unended(uint64_t now) {
    if (!acks_) return 0;
    uint64_t count = 0;
    if (::read(acks_.get(), &count, sizeof(count)) == sizeof(count)) ended_ += static_cast<int64_t>(count);
    return raised_ + static_cast<int64_t>(ticks_since_set(now)) - ended_;
}

void PitKeeper::expect_freeze(const Vm& vm) {
    const std::lock_guard lock(mutex_);
    const auto pit = vm.pit();
    if (!acks_ || !pit) return;
    const uint64_t now = monotonic_ns();
    follow(*pit, now);
    if (!periodic(running_.mode)) return;
    expecting_ = true;
    clean_ = false;
    // What it masked, or left alone, before anybody looked.
    if (!std::exchange(audited_, true)) raised_ -= std::max<int64_t>(unended(now) - 1, 0);
    window_ns_ = 0;
    take_stock(vm, now);
    if (next_boundary_ns_ == 0) next_boundary_ns_ = now + period_ns(running_.count) / 2;
}

void PitKeeper::expect_none() {
    const std::lock_guard lock(mutex_);
    expecting_ = false;
}

Result<void> PitKeeper::freeze(const Vm& vm, state::Pit& out) {
    const std::lock_guard lock(mutex_);
    TRY_ASSIGN(kvm_pit_state2 pit, vm.pit());
    follow(pit, monotonic_ns());
    take_stock(vm, monotonic_ns());
    if (!clean_ && (!listens(vm) || !plausible(least_unended_)))
        write_off(std::max<int64_t>(least_unended_ - 1, 0)); // one may be in flight
    kvm_pit_state2 stopped = pit;
    stopped.channels[0].mode = kStoppedMode;
    TRY(vm.set_pit(stopped)); // the tick that is due right now has been raised when this returns
    const uint64_t now = monotonic_ns();
    uint64_t delivered = running_.delivered + ticks_since_set(now);
    uint32_t in_flight = 0;
    if (acks_) {
        const int64_t left = std::max<int64_t>(unended(now), 0);
        in_flight = left > 0 ? 1 : 0;
        delivered -= std::min(delivered, static_cast<uint64_t>(left - in_flight));
    }
    out.clear_channel();
    for (const auto& channel : pit.channels)
        save_channel(channel, *out.add_channel());
    out.set_flags(pit.flags);
    out.set_reference_ns(running_.reference_ns);
    out.set_ticks_delivered(delivered);
    out.set_in_flight(in_flight);
    next_boundary_ns_ = 0;
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
    running_ = {in.reference_ns(), in.ticks_delivered(), now, timer.count, timer.mode};
    raised_ += static_cast<int64_t>(in.in_flight()) - unended(now);
    in_phase_ = false;
    next_boundary_ns_ = 0;
    // KVM's timer begins anew, and does not know of one in flight.
    forget_window();
    pulses_ = in.in_flight();
    audited_ = true;
    clean_ = false;
    if (!periodic(running_.mode) || now < running_.reference_ns) return {};
    catch_up(vm, now);
    const uint64_t period = period_ns(running_.count);
    next_boundary_ns_ = running_.reference_ns + ((now - running_.reference_ns) / period + 1) * period;
    return {};
}

// Raises at most one interrupt, and none while one is in flight: the line is an edge, and a second one before
// the guest has seen the first is lost. The rest follows every half period.
void PitKeeper::catch_up(const Vm& vm, uint64_t now) {
    if (!behind(now) || unended(now) > 0) return;
    const auto seen = vm.pulse_irq(kTimerGsi);
    if (seen && !*seen) return;
    ++running_.delivered;
    ++raised_;
    ++pulses_;
}

bool PitKeeper::behind(uint64_t now) const {
    return running_.delivered + ticks_since_set(now) <
           (now - running_.reference_ns) / period_ns(running_.count);
}

void PitKeeper::take_stock(const Vm& vm, uint64_t now) {
    const int64_t left = unended(now);
    if (left <= 0) {
        clean_ = true;
        forget_window();
        return;
    }
    if (window_ns_ == 0) {
        window_ns_ = now;
        ended_at_first_ = ended_;
        least_unended_ = left;
    }
    least_unended_ = std::min(least_unended_, left);
    if (ended_ - ended_at_first_ < kEndedMeanwhile) {
        if (now - window_ns_ < kPatienceNs && listens(vm)) return;
        pulses_ = 0;
        running_.delivered = (now - running_.reference_ns) / period_ns(running_.count) - ticks_since_set(now);
    }
    write_off(least_unended_);
    clean_ = true;
}

// Whether the line is unmasked somewhere: KVM too forgets what fell due while it was masked.
bool PitKeeper::listens(const Vm& vm) {
    const auto pic = vm.irqchip(KVM_IRQCHIP_PIC_MASTER);
    const auto ioapic = vm.irqchip(KVM_IRQCHIP_IOAPIC);
    if (!pic || !ioapic) return true;
    const auto unmasked = [&](int pin) { return ioapic->chip.ioapic.redirtbl[pin].fields.mask == 0; };
    return (pic->chip.pic.imr & 1) == 0 || unmasked(0) || unmasked(2);
}

bool PitKeeper::plausible(int64_t owed) const {
    return static_cast<uint64_t>(owed) <= kPatienceNs / period_ns(running_.count);
}

void PitKeeper::forget_window() {
    pulses_ = 0;
    window_ns_ = 0;
}

// They will never be ended. Those that may have been lost on the way are raised once more.
void PitKeeper::write_off(int64_t unended) {
    const int64_t lost = std::min(unended, pulses_);
    running_.delivered -= static_cast<uint64_t>(lost);
    raised_ -= unended;
    forget_window();
}

Deadline PitKeeper::wake_at() const {
    const std::lock_guard lock(mutex_);
    return next_boundary_ns_ == 0 ? Deadline::never() : Deadline::at_ns(next_boundary_ns_);
}

void PitKeeper::due(const Vm& vm) {
    const std::lock_guard lock(mutex_);
    const uint64_t now = monotonic_ns();
    if (next_boundary_ns_ == 0 || now < next_boundary_ns_) return;
    next_boundary_ns_ = 0;
    const auto pit = vm.pit();
    if (!pit || !is_ours(*pit)) return; // the guest has programmed the timer meanwhile
    if (!in_phase_ && !restart(vm, *pit, now)) return;
    take_stock(vm, now);
    catch_up(vm, now);
    // Once more, before KVM's own next tick.
    if (behind(now) || pulses_ > 0 || expecting_) next_boundary_ns_ = now + period_ns(running_.count) / 2;
}

// At a boundary: KVM's timer begins a period here, and has forgotten what it owed.
bool PitKeeper::restart(const Vm& vm, const kvm_pit_state2& pit, uint64_t now) {
    const uint64_t ticks = ticks_since_set(now);
    const int64_t left = unended(now);
    const uint64_t raised = ticks - std::min(ticks, static_cast<uint64_t>(std::max<int64_t>(left - 1, 0)));
    if (!vm.set_pit(pit)) return false;
    running_.set_ns = now;
    running_.delivered += raised;
    raised_ += static_cast<int64_t>(raised);
    if (left > 0) ++pulses_;
    in_phase_ = true;
    return true;
}

} // namespace liveupdate::vmm
