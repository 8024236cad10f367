// The guests of `./dev bench io`: each does I/O as fast as it can, and has a meter behind its VMM.
#pragma once

#include <memory>
#include <optional>

#include "tests/bench/meter.hpp"
#include "tests/support/linux_vm.hpp"
#include "tests/support/live_vm.hpp"
#include "tests/support/qemu_vm.hpp"

namespace liveupdate::tests {

// Linux with all its work on one device.
enum class Load { kDisk, kNetwork };

class LinuxGuest {
public:
    static Result<std::unique_ptr<LinuxGuest>> start(Load load, Runner runner, unsigned vcpus);
    const Meter& meter() const { return *meter_; }
    LiveVm& vm() { return vm_->vm(); }
    // What the guest has found wrong so far.
    Result<void> check() const;

private:
    LinuxGuest() = default;
    std::unique_ptr<LoopDevice> disk_;
    std::unique_ptr<LinuxVm> vm_;
    std::optional<Meter> meter_;
};

// disk.elf: its driver runs in ring 3 and polls, so that next to nothing of the time is the guest's own.
class DiskGuest {
public:
    static Result<std::unique_ptr<DiskGuest>> start(Runner runner);
    const Meter& meter() const { return *meter_; }
    LiveVm& vm() { return *vm_; }     // of Runner::kSupervisor
    QemuVm& qemu() { return *qemu_; } // of Runner::kQemu
    Result<void> check() const;

private:
    DiskGuest() = default;
    std::unique_ptr<LoopDevice> disk_;
    std::unique_ptr<LiveVm> vm_;
    std::unique_ptr<QemuVm> qemu_;
    std::optional<Meter> meter_;
};

} // namespace liveupdate::tests
