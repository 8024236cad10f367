// A test guest under the host's QEMU (microvm, KVM, RAM in a shared file), for comparisons: the same guest
// images, and QEMU's own live update to another process, migration with x-ignore-shared on one host.
//
// See QEMU's docs/devel/migration and `migrate-set-capabilities`. Whatever lives is ended with this object.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"
#include "handoff/shared_memory.hpp"
#include "tests/guests/report.hpp"

namespace liveupdate::tests {

// Why QEMU cannot be had here; empty when it can.
std::string why_no_qemu();
// Whether guests of QEMU's driver are to be interpreted: there is no KVM, or LIVEUPDATE_TEST_ACCEL=tcg says
// so.
bool under_tcg();

struct QemuOptions {
    std::string guest = "clock.elf"; // or a path
    std::string cmdline;             // beside vcpus=, which is added
    unsigned vcpus = 1;
    unsigned memory_mib = 64;
    std::string machine = "microvm,pit=on,pic=on,rtc=off";
    std::string initrd;             // path; empty: none
    std::string serial;             // path at which its serial port listens; empty: none. No update with it
    std::vector<std::string> disks; // raw files or block devices: O_DIRECT, io_uring, an iothread for all
    std::string tap;                // of the network namespace of the thread that starts it; empty: none
    int tap_fd = -1; // instead: an open tap without virtio's headers, which both QEMUs of an update share
};

// Words for the command line of test guests that drive a virtio device: where microvm has them.
inline constexpr const char* kMicrovmMmio = "mmio=0xfeb00000 mmio_slots=24 mmio_stride=512";

// One process and its monitor.
class QemuProcess {
public:
    static Result<std::unique_ptr<QemuProcess>> spawn(
        const std::vector<std::string>& arguments, const std::string& monitor, int inherited_fd = -1);
    QemuProcess(const QemuProcess&) = delete;
    QemuProcess& operator=(const QemuProcess&) = delete;
    ~QemuProcess(); // SIGKILL

    // One QMP command; its return value. Events that come meanwhile are kept.
    Result<nlohmann::json> command(const std::string& name, const nlohmann::json& arguments = {});
    // Waits for an event of that name whose data contain `data`; the event.
    Result<nlohmann::json> await_event(const std::string& name, const nlohmann::json& data = {});
    void forget_events() { events_.clear(); }
    // Ends it in order, and waits for its end.
    void quit();

private:
    QemuProcess() = default;
    Result<nlohmann::json> next(Deadline deadline);

    pid_t pid_ = -1;
    UniqueFd socket_;
    std::string received_;
    std::vector<nlohmann::json> events_;
};

class QemuVm {
public:
    static Result<std::unique_ptr<QemuVm>> start(QemuOptions options);
    ~QemuVm();

    const ::tests::guests::Report& report() const { return writable_report(); }
    ::tests::guests::Report& writable_report() const {
        return *reinterpret_cast<::tests::guests::Report*>(ram_.data() + ::tests::guests::kReportGpa);
    }
    bool guest_started() const;

    // Everything that QEMU lets one do before the migration: another process, set up and waiting.
    Result<void> prepare();
    // The migration; returns once the destination has resumed. The source is left standing.
    Result<void> switch_over();
    // After switch_over(), in ms: what QEMU calls the migration's downtime, and the time from its STOP event
    // to the destination's RESUME event.
    double downtime_ms() const { return downtime_ms_; }
    double stopped_ms() const { return stopped_ms_; }
    std::chrono::system_clock::time_point resumed_at() const { return resumed_at_; }
    // Ends the source.
    void finish();

private:
    explicit QemuVm(QemuOptions options) : options_(std::move(options)) {}
    std::vector<std::string> arguments(const std::string& monitor) const;
    Result<std::unique_ptr<QemuProcess>> spawn(bool incoming);

    QemuOptions options_;
    std::string directory_; // on tmpfs
    unsigned started_ = 0;
    double downtime_ms_ = 0, stopped_ms_ = 0;
    std::chrono::system_clock::time_point resumed_at_;
    handoff::SharedMapping ram_;
    std::unique_ptr<QemuProcess> process_, next_;
};

} // namespace liveupdate::tests
