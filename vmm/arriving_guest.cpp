#include "vmm/arriving_guest.hpp"

#include <algorithm>

#include "handoff/base/fd.hpp"
#include "vmm/console_fds.hpp"
#include "vmm/fixed_state.hpp"
#include "vmm/load_job.hpp"
#include "vmm/quiet_work.hpp"

namespace liveupdate::vmm {
namespace {

constexpr auto kReadyTime = std::chrono::seconds(10);
constexpr uint64_t kTscTolerancePpm = 250; // what KVM itself takes for the same frequency

// A saved guest reads the time off its TSC by the frequency that it has measured once.
Result<void> check_tsc(uint64_t wanted, uint64_t here) {
    const uint64_t apart = here > wanted ? here - wanted : wanted - here;
    if (wanted == 0 || apart * 1'000'000 <= wanted * kTscTolerancePpm) return {};
    return Error(ErrorCode::kRefused, "the guest was saved on a host whose TSC counts " +
                                          std::to_string(wanted) + " kHz, and this one's " +
                                          std::to_string(here) + "; its time would go wrong here");
}

} // namespace

Result<void> check_sections(
    const std::vector<handoff::SectionInfo>& ours, const std::vector<handoff::SectionInfo>& announced) {
    const auto contains = [](const auto& list, const std::string& name) {
        return std::any_of(list.begin(), list.end(), [&](const auto& s) { return s.name() == name; });
    };
    for (const auto& s : announced)
        if (!contains(ours, s.name()))
            return Error(
                ErrorCode::kRefused, "state section '" + s.name() + "' belongs to nothing in this machine");
    for (const auto& s : ours)
        if (!contains(announced, s.name()))
            return Error(ErrorCode::kRefused, "state section '" + s.name() + "' is missing");
    return {};
}

// Threads first: they use everything else.
ArrivingGuest::~ArrivingGuest() {
    parts_.threads.clear();
}

Result<handoff::proto::Prepared> ArrivingGuest::prepare(handoff::PrepareOrder order) {
    // While a saved guest is restored it runs nowhere that it could be disturbed, and it waits for nothing
    // that can be done behind it.
    if (order.saved_clocks)
        TRY(build(order));
    else
        TRY(quietly([&] { return build(order); }));
    handoff::proto::Prepared prepared;
    if (order.lazy_ram) TRY(begin_lazy_ram(order));
    parts_.populate_behind = order.populate && saved_clocks_ && !order.lazy_ram && !parts_.origin;
    if (order.populate && !saved_clocks_) {
        const uint64_t before = monotonic_ns();
        TRY(quietly([&] { return parts_.machine->populate(parts_.manifest); }));
        prepared.set_populate_ns(monotonic_ns() - before);
    }
    TRY(check_sections(parts_.machine->sections(), order.sections));
    return prepared;
}

Result<void> ArrivingGuest::build(handoff::PrepareOrder& order) {
    const auto& machine = order.manifest.machine;
    if (machine.vcpus() == 0 || machine.vcpus() > kMaxVcpus)
        return Error(ErrorCode::kRefused,
            "a machine of " + std::to_string(machine.vcpus()) + " vCPUs cannot be built");
    TRY_ASSIGN(const FixedState fixed, load_fixed_state(order.fixed_state, machine.vcpus()));
    if (order.saved_clocks) {
        saved_clocks_ = order.saved_clocks;
    } else if (!fixed.to_take.empty()) { // what a saved guest had open is gone
        TRY_ASSIGN(const UniqueFd source, handoff::take_fd(order.fds, "source-process"));
        TRY(take_from_source(source.get(), fixed.to_take, order.fds));
    }
    TRY_ASSIGN(UniqueFd kvm_fd, handoff::take_fd(order.fds, "kvm"));
    TRY_ASSIGN(parts_.fds["kvm"], fd::dup(kvm_fd.get()));
    TRY_ASSIGN(const KvmSystem system, KvmSystem::from(std::move(kvm_fd)));
    TRY_ASSIGN(auto console, take_console(machine.console(), order.fds, parts_.fds));

    Machine::Plan plan;
    plan.system = &system;
    plan.manifest = &order.manifest;
    plan.console = std::move(console);
    plan.fds = &order.fds;
    plan.kept = &parts_.fds;
    if (saved_clocks_) plan.rings = virtio::FormerRings::kGone;
    TRY_ASSIGN(parts_.machine, Machine::build(std::move(plan)));
    if (machine.ram_origin()) {
        TRY_ASSIGN(parts_.fds[handoff::kOriginFd], handoff::take_fd(order.fds, handoff::kOriginFd));
        TRY_ASSIGN(parts_.origin, begin_origin(*parts_.machine, order.manifest));
    }
    if (order.new_generation) TRY(parts_.machine->generation().renew(machine, parts_.machine->memory()));
    // KVM waits for grace periods there, some 10 ms (synchronize_srcu). A saved guest, which has stood still
    // for far longer, runs first; the keeper does it then, where it has to.
    if (!saved_clocks_) parts_.machine->pit().expect_thaw(parts_.machine->vm());
    TRY(parts_.machine->add_vcpus(machine.vcpus()));
    TRY(parts_.machine->set_cpuid(fixed.cpuid));
    TRY_ASSIGN(parts_.tsc_khz, parts_.machine->vcpus()[0]->tsc_khz());
    if (saved_clocks_) TRY(check_tsc(fixed.tsc_khz, parts_.tsc_khz));
    for (size_t i = 0; i < fixed.tsc_offsets.size(); ++i)
        TRY(parts_.machine->vcpus()[i]->set_tsc_offset(fixed.tsc_offsets[i]));
    if (order.rehearse) {
        Machine::Plan trial;
        trial.system = &system;
        trial.manifest = &order.manifest;
        trial.ram = handoff::MapMode::kPrivate;
        TRY_ASSIGN(trial.console, Console::none());
        TRY_ASSIGN(trial_, Machine::build(std::move(trial)));
        if (machine.ram_origin()) {
            TRY_ASSIGN(trial_origin_, begin_origin(*trial_, order.manifest));
        }
        TRY(trial_->add_vcpus(machine.vcpus()));
        TRY(trial_->set_cpuid(fixed.cpuid));
    }
    parts_.cpuid = fixed.cpuid;
    parts_.manifest = std::move(order.manifest);
    baton_ = order.baton;
    me_ = order.me;
    return {};
}

// Before anything touches the RAM that `machine` has mapped.
Result<std::unique_ptr<OriginRam>> ArrivingGuest::begin_origin(
    Machine& machine, const handoff::Manifest& manifest) {
    return OriginRam::begin(
        parts_.fds[handoff::kOriginFd].get(), manifest, [&](size_t region) { return machine.ram(region); },
        [&machine](std::string why) { machine.fault(std::move(why)); });
}

// Before anything touches RAM: the parts are empty.
Result<void> ArrivingGuest::begin_lazy_ram(handoff::PrepareOrder& order) {
    if (!saved_clocks_) return Error(ErrorCode::kProtocol, "RAM comes lazily only out of a save");
    LazyRam::Save save;
    save.sum = order.save_sum;
    if (order.save_uri.empty()) {
        TRY_ASSIGN(save.file, handoff::take_fd(order.fds, "save"));
    } else {
        if (!order.save_sum)
            return Error(
                ErrorCode::kProtocol, "prepare: RAM comes from an NBD server, and of which save is not told");
        save.uri = order.save_uri;
        save.patience = order.ram_timeout;
    }
    std::vector<LazyRam::Part> parts;
    for (size_t i = 0; i < parts_.manifest.regions.size(); ++i) {
        const handoff::RamRegion& region = parts_.manifest.regions[i];
        const handoff::RamBlock& block = parts_.manifest.blocks[region.block];
        if (!block.name.starts_with("ram")) continue;
        if (!handoff::comes_by_pages(block.kind))
            return Error(ErrorCode::kUnsupported,
                "RAM on a hugetlbfs or a disk does not come lazily; restore without --lazy");
        parts.push_back({block.name, region.offset, parts_.machine->ram(i)});
    }
    TRY_ASSIGN(parts_.lazy_ram,
        LazyRam::begin(std::move(save), std::move(parts),
            [&machine = *parts_.machine](std::string why) { machine.fault(std::move(why)); }));
    return {};
}

Result<void> ArrivingGuest::rehearse(handoff::Incoming& in) {
    if (!trial_)
        return Error(ErrorCode::kProtocol, "no rehearsal was announced when this guest was prepared");
    // Not quietly: how long this takes is what the real load is predicted from.
    auto registers = LoadJob::load_all(*trial_, in);
    return quietly([&]() -> Result<void> {
        trial_.reset();
        trial_origin_.reset();
        TRY(registers);
        for (const auto& vcpu : parts_.machine->vcpus())
            TRY(vcpu->prime((*registers)[vcpu->index()]));
        return {};
    });
}

Result<void> ArrivingGuest::load(std::shared_ptr<handoff::Incoming> in) {
    const ClockShift shift =
        saved_clocks_ ? ClockShift::since(saved_clocks_->monotonic_ns(), saved_clocks_->tsc()) : ClockShift();
    auto job = std::make_shared<LoadJob>(*parts_.machine, std::move(in), shift);
    for (auto& vcpu : parts_.machine->vcpus())
        parts_.threads.push_back(std::make_unique<VcpuThread>(*parts_.machine, *vcpu, *baton_, me_));
    for (size_t i = 0; i < parts_.threads.size(); ++i)
        parts_.threads[i]->start([job, &vcpu = *parts_.machine->vcpus()[i]] { return job->arrive(vcpu); });
    return job->await_ready(Deadline::after(kReadyTime));
}

std::unique_ptr<handoff::SourceGuest> ArrivingGuest::run() {
    parts_.machine->virtio().unhold();
    parts_.machine->console().unhold();
    return std::make_unique<RunningGuest>(std::move(parts_));
}

} // namespace liveupdate::vmm
