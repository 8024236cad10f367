#include "vmm/load_job.hpp"

#include "handoff/base/futex.hpp"
#include "vmm/kvm/vm_state.hpp"
#include "vmm/vcpu_thread.hpp"

namespace liveupdate::vmm {
namespace {

template <typename Message>
Result<Message> parse(handoff::Incoming& in, size_t index, std::string_view kind) {
    TRY_ASSIGN(const std::string bytes, in.await(index));
    Message message;
    if (!message.ParseFromString(bytes))
        return Error(ErrorCode::kRefused, "state section '" + std::string(kind) + "' cannot be read");
    if (!message.GetReflection()->GetUnknownFields(message).empty())
        return Error(ErrorCode::kRefused,
            "state section '" + std::string(kind) + "' has fields that this build does not know");
    return message;
}

Result<state::Vm> parse_vm(handoff::Incoming& in, size_t index) {
    TRY_ASSIGN(state::Vm message, parse<state::Vm>(in, index, kVmSection));
    TRY(check_vm(message));
    return message;
}

// Waits for a vCPU's section, and checks it.
template <typename Message>
Result<Message> parse_for(handoff::Incoming& in, size_t index, const char* kind, const Vcpu& vcpu) {
    TRY_ASSIGN(Message message, parse<Message>(in, index, kind));
    TRY(vcpu.check(message));
    return message;
}

Result<void> load_devices(Machine& machine, handoff::Incoming& in) {
    for (Device* device : machine.saved_devices()) {
        const auto schema = std::get<StateSchema>(device->state());
        TRY_ASSIGN(const size_t index, in.find(schema.section, schema.instance));
        TRY_ASSIGN(const std::string bytes, in.await(index));
        TRY(device->load(bytes, in.version(index)));
        TRY(in.loaded(index));
    }
    return {};
}

} // namespace

LoadJob::LoadJob(Machine& machine, std::shared_ptr<handoff::Incoming> in, ClockShift shift)
    : machine_(machine), in_(std::move(in)), shift_(shift) {}

bool LoadJob::arrive(Vcpu& vcpu) {
    if (!get_ready(vcpu)) return false;
    auto taken = load(vcpu);
    if (!taken) {
        in_->refuse(taken.error());
        return false;
    }
    if (!*taken && !in_->await_ownership()) return false;
    in_->stamp_entered(machine_.vcpus().size());
    return true;
}

// Who waits for all of them is told the first error: nobody has been paused yet.
bool LoadJob::get_ready(Vcpu& vcpu) {
    auto warm = vcpu.warm_up(kick_signal());
    const bool ready = warm.has_value();
    if (!ready) {
        const std::lock_guard lock(error_mutex_);
        if (!error_) error_ = std::move(warm).error();
    }
    ready_.fetch_add(1, std::memory_order_release);
    futex_wake_all(&ready_, FutexScope::kPrivate);
    return ready;
}

Result<void> LoadJob::await_ready(Deadline deadline) const {
    for (;;) {
        const uint32_t ready = ready_.load(std::memory_order_acquire);
        if (ready == machine_.vcpus().size()) break;
        if (deadline.passed()) return Error(ErrorCode::kTimeout, "a vCPU's thread did not get ready in time");
        futex_wait(&ready_, ready, deadline, FutexScope::kPrivate);
    }
    const std::lock_guard lock(error_mutex_);
    if (error_) return *error_;
    return {};
}

Result<bool> LoadJob::load(Vcpu& vcpu) {
    auto registers = load_registers(vcpu, *in_, shift_);
    if (vcpu.index() == 0) {
        auto loaded = registers ? load_shared() : Result<void>(Error(registers.error()));
        shared_.store(loaded ? kLoaded : kFailed, std::memory_order_release);
        futex_wake_all(&shared_, FutexScope::kPrivate);
        TRY(loaded);
    }
    TRY(registers);
    TRY_ASSIGN(const size_t index, in_->find(kInterruptsSection, vcpu.index()));
    TRY_ASSIGN(auto interrupts, parse_for<state::VcpuInterrupts>(*in_, index, kInterruptsSection, vcpu));
    shift_.move(interrupts);
    TRY(await_shared());
    TRY(vcpu.load_interrupts(interrupts));
    vcpu.note_pause(*registers);
    TRY_ASSIGN(const bool taken, in_->loaded(index));
    // Whoever took the baton starts the PIT; before that its ticks would be lost with the VM. From here on
    // the guest is ours, and better off without a PIT than without a VMM: no error may end this.
    if (taken) static_cast<void>(machine_.pit().thaw(machine_.vm(), *pit_));
    if (taken) machine_.generation().announce();
    return taken;
}

Result<state::Vcpu> LoadJob::load_registers(Vcpu& vcpu, handoff::Incoming& in, ClockShift shift) {
    TRY_ASSIGN(const size_t index, in.find(kVcpuSection, vcpu.index()));
    TRY_ASSIGN(state::Vcpu message, parse_for<state::Vcpu>(in, index, kVcpuSection, vcpu));
    shift.move(message);
    TRY(vcpu.load_registers(message));
    TRY(in.loaded(index));
    return message;
}

Result<void> LoadJob::load_shared() {
    TRY_ASSIGN(const size_t index, in_->find(kVmSection, 0));
    TRY_ASSIGN(state::Vm vm, parse_vm(*in_, index));
    shift_.move(vm);
    TRY(load_vm(machine_.vm(), vm));
    pit_ = vm.pit();
    TRY(load_devices(machine_, *in_));
    machine_.acpi_pm().move_clock(shift_.monotonic_ns);
    TRY(in_->loaded(index));
    return {};
}

Result<void> LoadJob::await_shared() {
    while (shared_.load(std::memory_order_acquire) == kWaiting)
        futex_wait(&shared_, kWaiting, Deadline::never(), FutexScope::kPrivate);
    if (shared_.load(std::memory_order_acquire) == kFailed)
        return Error(ErrorCode::kAborted, "what the vCPUs share could not be loaded");
    return {};
}

Result<std::vector<state::Vcpu>> LoadJob::load_all(Machine& machine, handoff::Incoming& in) {
    std::vector<state::Vcpu> registers;
    for (const auto& vcpu : machine.vcpus()) {
        TRY_ASSIGN(state::Vcpu message, load_registers(*vcpu, in, {}));
        registers.push_back(std::move(message));
    }
    TRY_ASSIGN(const size_t index, in.find(kVmSection, 0));
    TRY_ASSIGN(const state::Vm vm, parse_vm(in, index));
    TRY(load_vm(machine.vm(), vm));
    TRY(in.loaded(index));
    TRY(load_devices(machine, in));
    for (const auto& vcpu : machine.vcpus()) {
        TRY_ASSIGN(const size_t section, in.find(kInterruptsSection, vcpu->index()));
        TRY_ASSIGN(
            const auto interrupts, parse_for<state::VcpuInterrupts>(in, section, kInterruptsSection, *vcpu));
        TRY(vcpu->load_interrupts(interrupts));
        TRY(in.loaded(section));
    }
    return registers;
}

} // namespace liveupdate::vmm
