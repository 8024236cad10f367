#include "vmm/save_job.hpp"

#include "handoff/base/futex.hpp"
#include "vmm/kvm/vm_state.hpp"

namespace liveupdate::vmm {

SaveJob::SaveJob(
    Machine& machine, handoff::Outgoing& out, Deadline deadline, std::function<Result<void>()> stands)
    : machine_(machine), out_(out), deadline_(deadline), stands_(std::move(stands)),
      vcpus_(machine.vcpus().size()) {}

void SaveJob::run(Vcpu& vcpu) {
    begun_.fetch_add(1);
    if (!cancelled_.load()) { // else `out_` may be gone
        out_.stamp_stopped();
        if (auto saved = save(vcpu); !saved) fail(std::move(saved).error());
    }
    finished_.fetch_add(1, std::memory_order_release);
    futex_wake_all(&finished_, FutexScope::kPrivate);
}

Result<void> SaveJob::save(Vcpu& vcpu) {
    TRY_ASSIGN(const size_t registers, out_.find(kVcpuSection, vcpu.index()));
    TRY_ASSIGN(const size_t interrupts, out_.find(kInterruptsSection, vcpu.index()));
    state::Vcpu first;
    TRY(vcpu.save_registers(first));
    TRY(out_.put(registers, first.SerializeAsString()));
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == vcpus_) {
        const auto saved = save_shared();
        barrier_.store(saved ? kOpen : kCancelled, std::memory_order_release);
        futex_wake_all(&barrier_, FutexScope::kPrivate);
        if (!saved) return Error(saved.error());
    } else if (!meet()) {
        return Error(ErrorCode::kTimeout, "another vCPU did not stop");
    }
    state::VcpuInterrupts second;
    TRY(vcpu.save_interrupts(second));
    return out_.put(interrupts, second.SerializeAsString());
}

// Until here other vCPUs could still send interrupts, so nothing that receives them has been read.
Result<void> SaveJob::save_shared() {
    TRY(machine_.virtio().await_held(deadline_)); // and no device can raise an interrupt either
    TRY(stands_());
    TRY_ASSIGN(const size_t section, out_.find(kVmSection, 0));
    state::Vm vm;
    TRY(save_vm(machine_.vm(), machine_.pit(), vm));
    frozen_pit_ = vm.pit();
    TRY(out_.put(section, vm.SerializeAsString()));
    for (const Device* device : machine_.saved_devices()) {
        const auto schema = std::get<StateSchema>(device->state());
        TRY_ASSIGN(const size_t index, out_.find(schema.section, schema.instance));
        TRY_ASSIGN(const std::string bytes, device->save());
        TRY(out_.put(index, bytes));
    }
    return {};
}

bool SaveJob::meet() {
    while (barrier_.load(std::memory_order_acquire) == kClosed)
        futex_wait(&barrier_, kClosed, Deadline::never(), FutexScope::kPrivate);
    return barrier_.load(std::memory_order_acquire) == kOpen;
}

void SaveJob::fail(Error error) {
    const std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::move(error);
}

Result<void> SaveJob::wait(Deadline deadline) {
    for (;;) {
        const uint32_t finished = finished_.load(std::memory_order_acquire);
        if (finished == vcpus_) break;
        if (deadline.passed()) return Error(ErrorCode::kTimeout, "a vCPU did not stop in time");
        futex_wait(&finished_, finished, deadline, FutexScope::kPrivate);
    }
    const std::lock_guard lock(error_mutex_);
    if (error_) return *error_;
    return {};
}

void SaveJob::cancel() {
    cancelled_.store(true);
    uint32_t closed = kClosed;
    if (barrier_.compare_exchange_strong(closed, kCancelled)) futex_wake_all(&barrier_, FutexScope::kPrivate);
    for (;;) {
        const uint32_t finished = finished_.load(std::memory_order_acquire);
        if (finished == begun_.load()) return;
        futex_wait(
            &finished_, finished, Deadline::after(std::chrono::milliseconds(10)), FutexScope::kPrivate);
    }
}

} // namespace liveupdate::vmm
