#include "vmm/kvm/pit_keeper.hpp"

#include <algorithm>

namespace liveupdate::vmm {
namespace {

constexpr uint64_t kPitHz = 1193182;
// A mode that KVM does not run a timer for.
constexpr __u8 kStoppedMode = 5;
// What KVM shows for a channel that nobody has programmed yet.
constexpr __u8 kUnprogrammedMode = 0xff;
constexpr uint32_t kTimerGsi = 0;

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

Result<void> PitKeeper::freeze(const Vm& vm, state::Pit& out) {
    const std::lock_guard lock(mutex_);
    TRY_ASSIGN(kvm_pit_state2 pit, vm.pit());
    const uint64_t now = monotonic_ns();
    const auto& timer = pit.channels[0];
    const bool ours = running_.set_ns != 0 && timer.count == running_.count && timer.mode == running_.mode;
    if (!ours) running_ = {now, 0, now, timer.count, timer.mode};
    uint64_t delivered = running_.delivered;
    if (periodic(timer.mode)) delivered += (now - running_.set_ns) / period_ns(timer.count);
    out.clear_channel();
    for (const auto& channel : pit.channels)
        save_channel(channel, *out.add_channel());
    out.set_flags(pit.flags);
    out.set_reference_ns(running_.reference_ns);
    out.set_ticks_delivered(delivered);
    next_boundary_ns_ = 0;
    pit.channels[0].mode = kStoppedMode;
    return vm.set_pit(pit);
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
    next_boundary_ns_ = 0;
    if (!periodic(timer.mode) || now < running_.reference_ns) return {};
    catch_up(vm, now);
    const uint64_t period = period_ns(timer.count);
    next_boundary_ns_ = running_.reference_ns + ((now - running_.reference_ns) / period + 1) * period;
    return {};
}

// Raises at most one interrupt: the line is an edge, and a second one before the guest has seen the first is
// lost. The rest is raised at the following boundaries.
void PitKeeper::catch_up(const Vm& vm, uint64_t now) {
    const uint64_t due = (now - running_.reference_ns) / period_ns(running_.count);
    if (due <= running_.delivered) return;
    const auto seen = vm.pulse_irq(kTimerGsi);
    if (!seen || *seen) ++running_.delivered;
}

Deadline PitKeeper::wake_at() const {
    const std::lock_guard lock(mutex_);
    return next_boundary_ns_ == 0 ? Deadline::never() : Deadline::at_ns(next_boundary_ns_);
}

void PitKeeper::due(const Vm& vm) {
    const std::lock_guard lock(mutex_);
    const uint64_t now = monotonic_ns();
    if (next_boundary_ns_ == 0 || now < next_boundary_ns_) return;
    const uint64_t period = period_ns(running_.count);
    const auto pit = vm.pit();
    const bool ours =
        pit && pit->channels[0].count == running_.count && pit->channels[0].mode == running_.mode;
    next_boundary_ns_ = 0;
    if (!ours) return; // the guest has programmed the timer meanwhile
    running_.delivered += (now - running_.set_ns) / period;
    if (!vm.set_pit(*pit)) return;
    running_.set_ns = now;
    catch_up(vm, now);
    const uint64_t expected = (now - running_.reference_ns) / period;
    // Still behind: once more, before KVM's own next tick.
    if (running_.delivered < expected) next_boundary_ns_ = now + period / 2;
}

} // namespace liveupdate::vmm
