// The monitors of a QEMU guest's processes when no supervisor is there, as its successor comes to them.
#pragma once

#include "handoff/base/fd.hpp"
#include "supervisor/qemu/descriptors.hpp"
#include "supervisor/qemu/living_qemus.hpp"
#include "supervisor/qemu/qmp.hpp"
#include "tests/support/live_vm.hpp"

namespace liveupdate::tests {

// The supervisor's end, which the QEMU of that number has in the guest's life.
inline Result<UniqueFd> monitor_end(const LiveVm& vm, unsigned number) {
    const supervisor::qemu::QemuFolder folder(vm.runtime_directory() + "/qemu");
    for (const auto& each : supervisor::qemu::living_qemus(folder))
        if (each.participant == number)
            return fd::pidfd_getfd(each.pidfd.get(), supervisor::qemu::kMonitorKeptFd);
    return Error(ErrorCode::kNotFound, "there is no QEMU " + std::to_string(number));
}

inline Result<supervisor::qemu::QmpChannel> left_monitor(const LiveVm& vm, unsigned number) {
    TRY_ASSIGN(UniqueFd end, monitor_end(vm, number));
    return supervisor::qemu::QmpChannel::resume(std::move(end), Deadline::after(std::chrono::seconds(10)));
}

} // namespace liveupdate::tests
