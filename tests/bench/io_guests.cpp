#include "tests/bench/io_guests.hpp"

#include "supervisor/tap.hpp"

namespace liveupdate::tests {

// Long enough that the end of the source is not part of what the switchover costs.
constexpr const char* kUpdate = "probation = \"1s\"\nblackout_limit = \"5s\"\n";

using ::tests::guests::kDiskBytes;
using ::tests::guests::read_field;
using ::tests::guests::write_field;

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

Result<void> NetworkGuest::start_qemu(const std::string& cmdline, Purpose purpose) {
    QemuOptions options;
    options.guest = "network.elf";
    options.cmdline = cmdline + " " + kMicrovmMmio;
    if (purpose == Purpose::kUpdatable) {
        TRY_ASSIGN(
            supervisor::OpenTap tap, supervisor::open_tap(network_->tap(), 1, supervisor::TapHeaders::kNone));
        tap_ = std::move(tap.queues.front());
        options.tap_fd = tap_.get();
    } else {
        options.tap = network_->tap();
    }
    TRY_ASSIGN(qemu_, QemuVm::start(options));
    if (qemu_->guest_started()) return {};
    return Error(ErrorCode::kTimeout, "network.elf did not start in QEMU");
}

Result<void> NetworkGuest::start_ours(const std::string& cmdline) {
    LiveVmOptions options;
    options.guest = "network.elf";
    options.witness = false;
    options.cmdline = cmdline;
    options.extra_toml = "[[net]]\ntap = \"" + network_->tap() + "\"\n";
    options.update_toml = kUpdate;
    TRY_ASSIGN(vm_, LiveVm::start(options));
    if (vm_->guest_started()) return {};
    return Error(ErrorCode::kTimeout, "network.elf did not start");
}

Result<std::unique_ptr<NetworkGuest>> NetworkGuest::start(Runner runner, unsigned payload, Purpose purpose) {
    std::unique_ptr<NetworkGuest> guest(new NetworkGuest);
    TRY_ASSIGN(guest->network_, NetNamespace::make("tap0", "10.77.0.1/24"));
    TRY_ASSIGN(guest->meter_, Meter::packets_of(*guest->network_));
    const NetNamespace::Stay stay(*guest->network_);
    const std::string cmdline = "pump=1 bytes=" + std::to_string(payload);
    TRY(runner == Runner::kQemu ? guest->start_qemu(cmdline, purpose) : guest->start_ours(cmdline));
    const auto& seen = guest->report().header.network;
    if (!LiveVm::eventually([&] { return read_field(seen.answers) > 1000; }))
        return Error(ErrorCode::kTimeout, "network.elf gets no answers of the host");
    return guest;
}

::tests::guests::Report& NetworkGuest::report() {
    return vm_ ? vm_->writable_report() : qemu_->writable_report();
}

Result<void> NetworkGuest::check() {
    auto& header = report().header;
    write_field(header.go, 1);
    if (!LiveVm::eventually([&] { return read_field(header.network.in_flight) == 0; }))
        return Error(ErrorCode::kInternal, "the guest waits for answers that never come");
    if (read_field(header.errors) == 0 && read_field(header.network.reordered) == 0) return {};
    return Error(ErrorCode::kInternal, "the guest found an error of its network");
}

} // namespace liveupdate::tests
