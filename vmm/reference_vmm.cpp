#include "vmm/reference_vmm.hpp"

#include <algorithm>
#include <ctime>

#include "handoff/base/fd.hpp"
#include "handoff/build_id.hpp"
#include "vmm/arriving_guest.hpp"
#include "vmm/console_fds.hpp"
#include "vmm/devices/virtio/blk.hpp"
#include "vmm/devices/virtio/console.hpp"
#include "vmm/devices/virtio/net.hpp"
#include "vmm/devices/virtio/rng.hpp"
#include "vmm/kvm/cpu_template.hpp"
#include "vmm/origin_ram.hpp"
#include "vmm/running_guest.hpp"

namespace liveupdate::vmm {
namespace {

// Sections that this build saves and loads. A device's schema is declared with the device; the machine's
// sections are a function of its devices, so this list is read off a machine's parts, not kept by hand.
void add_support(handoff::proto::Offer& offer, const std::string& kind, uint32_t oldest, uint32_t newest) {
    auto* saves = offer.add_saves(); // only ever in the newest version
    saves->set_kind(kind);
    saves->set_oldest(newest);
    saves->set_newest(newest);
    auto* loads = offer.add_loads();
    loads->set_kind(kind);
    loads->set_oldest(oldest);
    loads->set_newest(newest);
}

class NoMachine final : public MachineControl, public InterruptLine {
public:
    void request_exit(uint32_t) override {}
    void request_power_off() override {}
    void request_reset() override {}
    void set(bool) override {}
};

void add_device_support(handoff::proto::Offer& offer) {
    NoMachine nothing;
    auto console = Console::none();
    if (!console) return;
    const Serial serial("serial0", nothing, **console);
    const ResetControl reset(nothing);
    const SystemClock clock;
    const AcpiPm acpi_pm(nothing, nothing, clock);
    const Rtc rtc(clock);
    for (const Device* device : std::initializer_list<const Device*>{&serial, &reset, &acpi_pm, &rtc}) {
        const StateDeclaration declared = device->state();
        if (const auto* schema = std::get_if<StateSchema>(&declared))
            add_support(offer, schema->section, schema->oldest_loadable, schema->version);
    }
    using virtio::Blk, virtio::ConsolePort, virtio::Net, virtio::Rng;
    add_support(offer, Blk::kSection, Blk::kOldestLoadable, Blk::kStateVersion);
    add_support(offer, ConsolePort::kSection, ConsolePort::kOldestLoadable, ConsolePort::kStateVersion);
    add_support(offer, Net::kSection, Net::kOldestLoadable, Net::kStateVersion);
    add_support(offer, Rng::kSection, Rng::kOldestLoadable, Rng::kStateVersion);
}

Result<Cpuid> make_cpuid(const KvmSystem& system, const Vcpu& vcpu, const handoff::proto::Machine& machine) {
    CpuTemplateRequest request;
    request.name = machine.cpu_template();
    TRY_ASSIGN(const Cpuid supported, system.supported_cpuid());
    request.supported = &supported;
    request.vcpus = machine.vcpus();
    TRY_ASSIGN(request.tsc_khz, vcpu.tsc_khz());
    request.tsc_deadline = system.extension(KVM_CAP_TSC_DEADLINE_TIMER) > 0;
    return apply_cpu_template(request);
}

} // namespace

ReferenceVmm::ReferenceVmm(const std::string& version) {
    offer_.set_implementation("liveupdate-vmm");
    offer_.set_version(version);
    offer_.set_build_id(handoff::own_build_id());
    offer_.set_started_unix(static_cast<uint64_t>(std::time(nullptr)));
    for (const std::string& name : cpu_template_names())
        offer_.add_cpu_templates(name);
    offer_.add_capabilities("rehearse");
    offer_.add_capabilities("restore");
    offer_.add_capabilities("track-writes");
    offer_.add_capabilities("lazy-ram");
    offer_.add_capabilities("lazy-ram-nbd");
    offer_.add_capabilities(handoff::kOriginCapability);
    offer_.add_capabilities(handoff::kGenerationCapability);
    for (const char* kind : {kVcpuSection, kInterruptsSection, kVmSection})
        add_support(offer_, kind, kStateVersion, kStateVersion);
    add_device_support(offer_);
}

Result<std::unique_ptr<handoff::SourceGuest>> ReferenceVmm::launch(handoff::LaunchOrder order) {
    const auto& wanted = order.manifest.machine;
    if (wanted.vcpus() == 0 || wanted.vcpus() > kMaxVcpus)
        return Error(ErrorCode::kInvalid, "a machine has 1 to " + std::to_string(kMaxVcpus) + " vCPUs, not " +
                                              std::to_string(wanted.vcpus()));
    if (wanted.ram_origin())
        return Error(ErrorCode::kProtocol, "a guest that has not run yet has no RAM with an origin");
    RunningGuest::Parts parts;
    TRY_ASSIGN(UniqueFd kvm_fd, handoff::take_fd(order.fds, "kvm"));
    TRY_ASSIGN(parts.fds["kvm"], fd::dup(kvm_fd.get()));
    TRY_ASSIGN(const KvmSystem system, KvmSystem::from(std::move(kvm_fd)));
    TRY_ASSIGN(auto console, take_console(wanted.console(), order.fds, parts.fds));
    UniqueFd kernel, initrd;
    if (wanted.boot() == "kernel") {
        TRY_ASSIGN(kernel, handoff::take_fd(order.fds, "kernel"));
        if (order.fds.contains("initrd")) {
            TRY_ASSIGN(initrd, handoff::take_fd(order.fds, "initrd"));
        }
    }
    Machine::Plan plan;
    plan.system = &system;
    plan.manifest = &order.manifest;
    plan.console = std::move(console);
    plan.fds = &order.fds;
    plan.kept = &parts.fds;
    TRY_ASSIGN(parts.machine, Machine::build(std::move(plan)));
    TRY(parts.machine->add_vcpus(wanted.vcpus()));
    TRY_ASSIGN(parts.cpuid, make_cpuid(system, *parts.machine->vcpus()[0], wanted));
    TRY(parts.machine->set_cpuid(parts.cpuid));
    TRY_ASSIGN(parts.tsc_khz, parts.machine->vcpus()[0]->tsc_khz());
    TRY(parts.machine->boot(order.manifest, kernel.get(), initrd.get()));
    for (auto& vcpu : parts.machine->vcpus())
        parts.threads.push_back(std::make_unique<VcpuThread>(*parts.machine, *vcpu, *order.baton, order.me));
    parts.manifest = std::move(order.manifest);
    parts.machine->console().unhold();
    parts.machine->virtio().unhold();
    for (auto& thread : parts.threads)
        thread->start([] { return true; });
    return std::unique_ptr<handoff::SourceGuest>(std::make_unique<RunningGuest>(std::move(parts)));
}

std::unique_ptr<handoff::DestinationGuest> ReferenceVmm::destination() {
    return std::make_unique<ArrivingGuest>();
}

} // namespace liveupdate::vmm
