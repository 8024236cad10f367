// The same guest with and without I/O on a disk that takes 200 ms for each request, updated by turns; then
// the same under QEMU.
#include <fcntl.h>
#include <unistd.h>

#include "handoff/base/fd.hpp"
#include "tests/bench/gaps.hpp"
#include "tests/bench/io.hpp"
#include "tests/support/live_vm.hpp"
#include "tests/support/qemu_vm.hpp"
#include "tests/support/slow_disk.hpp"
#include "tests/support/temporary_folder.hpp"

namespace liveupdate::tests {
namespace {

using namespace std::chrono_literals;
using ::tests::guests::kDiskBytes;
using ::tests::guests::kDiskLanes;
using ::tests::guests::read_field;
using ::tests::guests::Report;
using ::tests::guests::write_field;

Error too_slow(const std::string& what) {
    return {ErrorCode::kTimeout, what + " within a minute"};
}

// 32 requests are on their way, and some have come back since this was asked for.
Result<void> begin_io(Report& report) {
    const uint64_t completed = read_field(report.header.disk.completed);
    write_field(report.header.go, 0);
    const auto busy = [&] {
        return read_field(report.header.disk.in_flight) == kDiskLanes &&
               read_field(report.header.disk.completed) > completed + kDiskLanes;
    };
    if (!LiveVm::eventually(busy, 60s)) return too_slow("the guest did not get its requests going");
    return {};
}

Result<void> end_io(Report& report) {
    write_field(report.header.go, 1);
    if (!LiveVm::eventually([&] { return read_field(report.header.disk.in_flight) == 0; }, 60s))
        return too_slow("the guest's requests did not come to their ends");
    return {};
}

// What the guest has found wrong, and whether each request came back once.
Result<void> check(Report& report, const char* who) {
    TRY(end_io(report));
    const auto& disk = report.header.disk;
    if (read_field(report.header.errors) == 0 && read_field(disk.submitted) == read_field(disk.completed))
        return {};
    return Error(ErrorCode::kInternal, std::string("the guest found an error of its disk under ") + who);
}

struct Blackouts {
    std::vector<double> with_io, without_io;
};

Result<Blackouts> ours(const std::string& disk, unsigned updates) {
    LiveVmOptions options;
    options.guest = "disk.elf";
    options.witness = false;
    options.extra_toml = "[[disk]]\npath = \"" + disk + "\"\ndirect = true\n";
    TRY_ASSIGN(const auto vm, LiveVm::start(options));
    if (!vm->guest_started()) return Error(ErrorCode::kTimeout, "the guest did not start");
    Blackouts seen;
    for (unsigned i = 0; i < 2 * updates; ++i) {
        const bool busy = i / 2 % 2 == 0; // both ways between the two binaries
        TRY(busy ? begin_io(vm->writable_report()) : end_io(vm->writable_report()));
        TRY_ASSIGN(
            const auto record, vm->update(program(i % 2 == 0 ? "liveupdate-vmm-next" : "liveupdate-vmm")));
        if (record.outcome != supervisor::Outcome::kCompleted)
            return Error(ErrorCode::kRefused, record.reason);
        (busy ? seen.with_io : seen.without_io)
            .push_back(static_cast<double>(record.blackout_us.value_or(0)) / 1e3);
    }
    TRY(check(vm->writable_report(), "liveupdate"));
    return seen;
}

struct QemuDowntimes {
    Blackouts told, stopped;
};

Result<QemuDowntimes> qemus(const std::string& disk, unsigned updates) {
    QemuOptions options;
    options.guest = "disk.elf";
    options.cmdline = kMicrovmMmio;
    options.disks = {disk};
    TRY_ASSIGN(const auto vm, QemuVm::start(options));
    if (!vm->guest_started()) return Error(ErrorCode::kTimeout, "the guest did not start under QEMU");
    QemuDowntimes seen;
    for (unsigned i = 0; i < 2 * updates; ++i) {
        const bool busy = i % 2 == 0;
        TRY(busy ? begin_io(vm->writable_report()) : end_io(vm->writable_report()));
        TRY(vm->prepare());
        TRY(vm->switch_over());
        vm->finish();
        (busy ? seen.told.with_io : seen.told.without_io).push_back(vm->downtime_ms());
        (busy ? seen.stopped.with_io : seen.stopped.without_io).push_back(vm->stopped_ms());
    }
    TRY(check(vm->writable_report(), "QEMU"));
    return seen;
}

double median(const std::vector<double>& values) {
    return percentile(values, 0.5);
}

} // namespace

Result<void> bench_slow_disk(unsigned updates) {
    const TemporaryFolder folder;
    const std::string file = folder.at("disk.img");
    {
        TRY_ASSIGN(const UniqueFd made, fd::open(file, O_RDWR | O_CREAT, 0600));
        if (::ftruncate(made.get(), kDiskBytes) != 0) return Error::from_errno("ftruncate");
    }
    Blackouts our;
    {
        const SlowDisk disk(file, kDiskBytes, folder.at("ours.sock"));
        if (!disk.up()) return Error(ErrorCode::kTimeout, "the slow disk did not come up");
        TRY_ASSIGN(our, ours(disk.path(), updates));
    }
    const SlowDisk disk(file, kDiskBytes, folder.at("qemu.sock"));
    if (!disk.up()) return Error(ErrorCode::kTimeout, "the slow disk did not come up");
    TRY_ASSIGN(const QemuDowntimes qemu, qemus(disk.path(), std::max(2u, updates / 4)));
    std::printf(
        "a disk of 200 ms a request, 32 requests in flight, 1 vCPU, %u updates each, a quarter of that"
        " under QEMU\n",
        updates);
    std::printf("liveupdate: blackout\n");
    print_row("with I/O", our.with_io, "ms");
    print_row("without I/O", our.without_io, "ms");
    std::printf("  ratio of the medians: %.2f\n", median(our.with_io) / median(our.without_io));
    std::printf("QEMU, x-ignore-shared, microvm\n");
    print_row("downtime of query-migrate, with I/O", qemu.told.with_io, "ms");
    print_row("downtime, without I/O", qemu.told.without_io, "ms");
    print_row("STOP to RESUME, with I/O", qemu.stopped.with_io, "ms");
    print_row("STOP to RESUME, without I/O", qemu.stopped.without_io, "ms");
    return {};
}

} // namespace liveupdate::tests
