#include "vmm/fixed_state.hpp"

#include <sys/syscall.h>
#include <unistd.h>

#include "vmm/fixed_state.pb.h"

namespace liveupdate::vmm {
namespace {

constexpr int kMaxEntries = 256;
constexpr int kMaxToTake = 128;

} // namespace

std::string save_fixed_state(const Cpuid& cpuid, const std::vector<std::unique_ptr<Vcpu>>& vcpus,
    const std::vector<handoff::FdToSend>& to_take, uint32_t tsc_khz) {
    state::FixedState message;
    for (const kvm_cpuid_entry2& e : cpuid) {
        auto& out = *message.add_cpuid();
        out.set_function(e.function);
        out.set_index(e.index);
        out.set_flags(e.flags);
        out.set_eax(e.eax);
        out.set_ebx(e.ebx);
        out.set_ecx(e.ecx);
        out.set_edx(e.edx);
    }
    for (const auto& vcpu : vcpus)
        if (const auto offset = vcpu->tsc_offset()) message.add_tsc_offset(*offset);
    message.set_tsc_khz(tsc_khz);
    for (const handoff::FdToSend& each : to_take) {
        auto& out = *message.add_to_take();
        out.set_name(each.name);
        out.set_number(each.fd);
    }
    return message.SerializeAsString();
}

Result<FixedState> load_fixed_state(const std::string& bytes, unsigned vcpus) {
    state::FixedState message;
    if (!message.ParseFromString(bytes)) return Error(ErrorCode::kRefused, "the fixed state cannot be read");
    if (message.cpuid_size() == 0 || message.cpuid_size() > kMaxEntries)
        return Error(ErrorCode::kRefused,
            "the fixed state has " + std::to_string(message.cpuid_size()) + " CPUID entries");
    if (message.tsc_offset_size() != 0 && static_cast<unsigned>(message.tsc_offset_size()) != vcpus)
        return Error(ErrorCode::kRefused, "the fixed state has not one TSC offset for each vCPU");
    if (message.to_take_size() > kMaxToTake)
        return Error(ErrorCode::kBusy, std::to_string(message.to_take_size()) +
                                           " io_urings of former updates still have requests in flight; wait "
                                           "until the disks have caught up");
    FixedState state;
    state.tsc_khz = message.tsc_khz();
    for (const state::DescriptorToTake& in : message.to_take())
        state.to_take.push_back({in.name(), in.number()});
    for (const state::CpuidEntry& in : message.cpuid()) {
        kvm_cpuid_entry2 e{};
        e.function = in.function();
        e.index = in.index();
        e.flags = in.flags();
        e.eax = in.eax();
        e.ebx = in.ebx();
        e.ecx = in.ecx();
        e.edx = in.edx();
        state.cpuid.push_back(e);
    }
    state.tsc_offsets.assign(message.tsc_offset().begin(), message.tsc_offset().end());
    return state;
}

Result<void> take_from_source(
    int source, const std::vector<handoff::FdToSend>& to_take, handoff::NamedFds& fds) {
    for (const handoff::FdToSend& each : to_take) {
        if (fds.contains(each.name))
            return Error(ErrorCode::kRefused, "the source names a file descriptor that is there already");
        UniqueFd taken(static_cast<int>(::syscall(SYS_pidfd_getfd, source, each.fd, 0)));
        if (!taken)
            return Error::from_errno("take an io_uring out of the source (pidfd_getfd; both run as one user, "
                                     "and the sysctl kernel.yama.ptrace_scope must be 0 or 1)");
        fds[each.name] = std::move(taken);
    }
    return {};
}

} // namespace liveupdate::vmm
