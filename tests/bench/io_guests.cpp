#include "tests/bench/io_guests.hpp"

namespace liveupdate::tests {

// Long enough that the end of the source is not part of what the switchover costs.
constexpr const char* kUpdate = "probation = \"1s\"\nblackout_limit = \"5s\"\n";

using ::tests::guests::kDiskBytes;
using ::tests::guests::read_field;

Result<std::unique_ptr<LinuxGuest>> LinuxGuest::start(Load load, Runner runner, unsigned vcpus) {
    std::unique_ptr<LinuxGuest> guest(new LinuxGuest);
    LinuxVmOptions options;
    options.vcpus = vcpus;
    options.runner = runner;
    options.file_systems = 0;
    if (load == Load::kDisk) {
        TRY_ASSIGN(guest->disk_, LoopDevice::make(64 << 20));
        options.disks = 1;
        options.given_disks = {guest->disk_->path()};
        options.network = Network::kNone;
        options.work = "lu.depth=16 lu.request_blocks=16";
    } else {
        options.disks = 0;
        options.peer_pause_us = 0;
        options.work = "lu.tcp_pause_us=0 lu.tcp_chunk=65536";
    }
    options.work += " lu.progress_ms=1000000000";
    options.update_toml = kUpdate;
    TRY_ASSIGN(guest->vm_, LinuxVm::start(std::move(options)));
    TRY_ASSIGN(
        guest->meter_, load == Load::kDisk ? Meter::of(*guest->disk_) : Meter::of(*guest->vm_->network()));
    return guest;
}

Result<void> LinuxGuest::check() const {
    const auto errors = vm_->lines("error");
    if (errors.empty()) return {};
    return Error(ErrorCode::kInternal, "the guest complains: " + errors[0]);
}

Result<std::unique_ptr<DiskGuest>> DiskGuest::start(Runner runner) {
    std::unique_ptr<DiskGuest> guest(new DiskGuest);
    TRY_ASSIGN(guest->disk_, LoopDevice::make(kDiskBytes));
    TRY_ASSIGN(guest->meter_, Meter::of(*guest->disk_));
    if (runner == Runner::kQemu) {
        QemuOptions options;
        options.guest = "disk.elf";
        options.cmdline = kMicrovmMmio;
        options.disks = {guest->disk_->path()};
        TRY_ASSIGN(guest->qemu_, QemuVm::start(options));
        if (guest->qemu_->guest_started()) return guest;
    } else {
        LiveVmOptions options;
        options.guest = "disk.elf";
        options.witness = false;
        options.extra_toml = "[[disk]]\npath = \"" + guest->disk_->path() + "\"\n";
        options.update_toml = kUpdate;
        TRY_ASSIGN(guest->vm_, LiveVm::start(options));
        if (guest->vm_->guest_started()) return guest;
    }
    return Error(ErrorCode::kTimeout, "disk.elf did not start");
}

Result<void> DiskGuest::check() const {
    if (read_field((vm_ ? vm_->report() : qemu_->report()).header.errors) == 0) return {};
    return Error(ErrorCode::kInternal, "the guest found an error of its disk");
}

} // namespace liveupdate::tests
