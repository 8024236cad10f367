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

// network.elf with its pump: echo requests of `payload` bytes to the host's kernel, 64 in flight.
class NetworkGuest {
public:
    // kUpdatable: a QEMU's tap is open before it is, as its own update needs it, and without virtio's
    // headers.
    enum class Purpose { kThroughput, kUpdatable };
    static Result<std::unique_ptr<NetworkGuest>> start(Runner runner, unsigned payload, Purpose purpose);
    const Meter& meter() const { return *meter_; } // of packets
    LiveVm& vm() { return *vm_; }                  // of Runner::kSupervisor
    QemuVm& qemu() { return *qemu_; }              // of Runner::kQemu
    // Asks the guest for quiet: no error, and each request answered once and in order.
    Result<void> check();

private:
    NetworkGuest() = default;
    ::tests::guests::Report& report();
    Result<void> start_qemu(const std::string& cmdline, Purpose purpose);
    Result<void> start_ours(const std::string& cmdline);
    std::unique_ptr<NetNamespace> network_;
    UniqueFd tap_;
    std::unique_ptr<LiveVm> vm_;
    std::unique_ptr<QemuVm> qemu_;
    std::optional<Meter> meter_;
};

} // namespace liveupdate::tests
