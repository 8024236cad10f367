// The state of what belongs to the VM and to no single vCPU: PICs, I/O APIC, PIT, kvmclock.
#pragma once

#include "handoff/base/result.hpp"
#include "vmm/kvm/pit_keeper.hpp"
#include "vmm/kvm/vcpu_state.pb.h"
#include "vmm/kvm/vm.hpp"

namespace liveupdate::vmm {

// All vCPUs stand still. Stops the PIT first, so that no interrupt is raised after its target was read.
Result<void> save_vm(const Vm& vm, PitKeeper& pit, state::Vm& out);

Result<void> check_vm(const state::Vm& in);

// Everything but the PIT, which is thawed when the vCPUs are about to run: a tick that arrives before the
// local APICs are loaded would be overwritten. Before Vcpu::load_late() of any vCPU.
Result<void> load_vm(const Vm& vm, const state::Vm& in);

} // namespace liveupdate::vmm
