// One KVM vCPU: its fd, its kvm_run page, and its state as a saved value.
#pragma once

#include <linux/kvm.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"
#include "handoff/shared_memory.hpp"
#include "vmm/boot/initial_state.hpp"
#include "vmm/kvm/cpu_template.hpp"
#include "vmm/kvm/system.hpp"
#include "vmm/kvm/vcpu_state.pb.h"
#include "vmm/kvm/vm.hpp"

namespace liveupdate::vmm {

// The argument of KVM_GET_MSRS and KVM_SET_MSRS for a single MSR; kvm_msrs itself ends in a flexible array.
struct OneMsr {
    __u32 nmsrs = 1;
    __u32 pad = 0;
    kvm_msr_entry entry{};

    explicit OneMsr(uint32_t index, uint64_t value = 0) { entry = {index, 0, value}; }
};
static_assert(sizeof(OneMsr) == 8 + sizeof(kvm_msr_entry));

// What KVM_GET_MSRS or KVM_SET_MSRS takes of a vCPU's MSRs, in their order, with their values; any number of
// the others between them.
Result<std::vector<kvm_msr_entry>> those_that_work(
    int vcpu, const std::vector<kvm_msr_entry>& entries, unsigned long request, const char* name);

class Vcpu {
public:
    static Result<std::unique_ptr<Vcpu>> create(const KvmSystem& system, Vm& vm, unsigned index);
    // Once, before anything else: what CPUID shows, and with it which MSRs there are. `vcpu0` is vCPU 0's
    // table.
    Result<void> set_cpuid(const KvmSystem& system, const Cpuid& vcpu0);

    unsigned index() const { return index_; }
    kvm_run& run_page() const { return *reinterpret_cast<kvm_run*>(run_mapping_.data()); }
    int fd() const { return fd_.get(); }

    Result<void> set_initial_state(const InitialState& state);

    // Runs the guest until an exit; the value is false when a signal or immediate_exit ended it.
    Result<bool> enter();

    // Where the guest stands; nothing when KVM does not say. On the vCPU's own thread, outside enter().
    std::optional<uint64_t> instruction_pointer() const;

    // Lets KVM make what it makes in the first KVM_RUN (shadow page caches and roots, a thread) without
    // running the guest: on the thread that is to run it, before the guest has arrived. `signal` is one that
    // the process handles; it is pending throughout, so KVM turns round in front of the guest.
    Result<void> warm_up(int signal);

    // Saving comes in two halves: the registers may be read once this vCPU stands still, the interrupt state
    // only when all do, because other vCPUs and timers still send interrupts here. The second half reads the
    // registers again when an INIT or SIPI came between.
    Result<void> save_registers(state::Vcpu& out);
    Result<void> save_interrupts(state::VcpuInterrupts& out);

    // Loading into a vCPU that has never run, registers first. Between the two the VM's interrupt controllers
    // are loaded. Values must have passed check().
    Result<void> load_registers(const state::Vcpu& in);
    Result<void> load_interrupts(const state::VcpuInterrupts& in);

    // Sets what is known of the registers before the guest arrives, but for what would touch guest memory:
    // load_registers() then leaves out whatever has not changed.
    Result<void> prime(const state::Vcpu& in);

    // Fills KVM's page tables for a guest physical range (bytes), before the first run. Only where
    // kCapPreFaultMemory is there.
    Result<void> pre_fault(uint64_t gpa, uint64_t size) const;

    // Whether a state from a peer can be loaded here at all.
    Result<void> check(const state::Vcpu& in) const;
    Result<void> check(const state::VcpuInterrupts& in) const;

    // Tells the guest's kernel that it has not been running (its watchdogs look at the flag); only for guests
    // that use kvmclock.
    void note_pause(const state::Vcpu& in);

    // Guest TSC minus host TSC as last read or set; none where this KVM cannot tell. Any thread, also while
    // the vCPU runs: a call on its fd would wait until it leaves KVM_RUN, which it may never do by itself.
    std::optional<int64_t> tsc_offset() const;
    // Reads it. Only while the vCPU is out of KVM_RUN.
    void refresh_tsc_offset();
    Result<void> set_tsc_offset(int64_t offset);
    Result<uint32_t> tsc_khz() const;

private:
    Vcpu() = default;
    Result<void> probe_msrs(const KvmSystem& system);
    Result<void> get_msrs(state::Vcpu& out);
    enum class Msrs { kAll, kHarmless };
    Result<void> set_msrs(const state::Vcpu& in, Msrs which);
    // Calls the setter unless the same value was set before.
    template <typename T>
    Result<void> set_changed(
        std::optional<T>& known, const T& value, unsigned long request, const char* name);
    Result<void> set_xsave(const std::string& area);
    Result<void> set_msr(uint32_t index, uint64_t value);
    Result<void> save_tsc(state::Vcpu& out);
    Result<void> load_tsc(const state::Vcpu& in);
    template <typename T>
    Result<void> call(unsigned long request, T* argument, const char* name) const {
        auto result = kvm_ioctl(fd_.get(), request, static_cast<void*>(argument), name);
        if (!result) return std::move(result).error();
        return {};
    }

    unsigned index_ = 0;
    UniqueFd fd_;
    handoff::SharedMapping run_mapping_;
    bool has_tsc_offset_ = false;
    std::atomic<int64_t> tsc_offset_{0};
    bool has_xcrs_ = false;
    bool has_xsave2_ = false;
    size_t xsave_size_ = 0;
    uint32_t signature_ = 0; // CPUID leaf 1, EAX: what RDX holds after a reset
    std::vector<uint32_t> msrs_;
    KvmTable<kvm_msr_entry> msr_table_{0}; // kept, so that the blackout allocates nothing for it
    std::vector<uint64_t> xsave_buffer_;
    uint32_t saved_mp_state_ = 0;

    // What this vCPU is known to hold because we set it and it has not run since.
    std::optional<kvm_mp_state> known_mp_state_;
    std::optional<kvm_sregs> known_sregs_;
    std::optional<kvm_xcrs> known_xcrs_;
    std::optional<kvm_debugregs> known_debug_;
    std::string known_xsave_;
    std::unordered_map<uint32_t, uint64_t> known_msrs_;
};

} // namespace liveupdate::vmm
