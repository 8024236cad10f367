// A real VM for tests and benchmarks: a supervisor of its own in folders of its own, a test guest in real
// KVM, and the guest's report read from its RAM from outside.
//
// The processes are real; whatever lives is ended with this object. The process that uses it becomes the
// subreaper of VMMs whose supervisor was killed, so no zombie stays behind.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"
#include "handoff/baton.hpp"
#include "handoff/shared_memory.hpp"
#include "supervisor/record.hpp"
#include "tests/guests/report.hpp"
#include "tests/support/holdings.hpp"
#include "tests/support/private_ram.hpp"
#include "vmm/witness.hpp"

namespace liveupdate::tests {

// Why real guests cannot run here, e.g. "there is no /dev/kvm"; empty when they can.
std::string why_no_kvm();

// The built programs and guests, found beside the test program.
std::string program(const std::string& name);     // e.g. "liveupdate-vmm"
std::string guest_image(const std::string& name); // e.g. "clock.elf"

// An [update] section for tests: a machine that is busy for a while fails none.
inline constexpr const char* kPatientUpdate = "probation = \"20ms\"\nblackout_limit = \"5s\"\n";

struct LiveVmOptions {
    std::string vmm;                 // path of the first binary; empty: liveupdate-vmm
    std::string guest = "clock.elf"; // or "firmware.bin", or a path
    std::string initrd;              // path; empty: none
    unsigned vcpus = 1;
    unsigned memory_mib = 64;
    std::string cmdline;                      // beside vcpus= and witness=, which are added
    std::string extra_toml;                   // appended
    std::string update_toml = kPatientUpdate; // the [update] section
    std::string console_toml = "type = \"none\"\n";
    std::string backing = "memfd";              // of private RAM only report() can be read, and not written
    std::string backing_directory = "/dev/shm"; // of tmpfs and hugetlbfs
    bool witness = true;
    std::string qemu_toml; // not empty: driver "qemu" with this [qemu] section, and no witness
};

class LiveVm {
public:
    static Result<std::unique_ptr<LiveVm>> start(LiveVmOptions options);
    LiveVm(const LiveVm&) = delete;
    LiveVm& operator=(const LiveVm&) = delete;
    ~LiveVm();

    // One request to the supervisor; its result.
    Result<nlohmann::json> call(const nlohmann::json& request);
    // An update to `binary` and its record. `more` is merged into the request (kind, fault, timeout_ms).
    Result<supervisor::UpdateRecord> update(const std::string& binary, const nlohmann::json& more = {});
    nlohmann::json status();

    // After the supervisor has died: starts a new one, which adopts whatever runs.
    Result<void> start_supervisor(const std::vector<std::string>& more = {});
    // After the VM has ended: starts it as it was saved in `directory`, in the VMM `binary` (empty: the
    // first).
    Result<void> restore(const std::string& directory, const std::string& binary = "",
        const std::vector<std::string>& more = {});
    // SIGKILL, and waits for its end.
    void kill_supervisor();
    bool supervisor_alive();
    // Waits until it has ended of its own accord: its exit status, or 128 + signal. Empty when it does not.
    std::optional<int> await_supervisor_end();

    // Waits until `condition` holds; false at the deadline.
    static bool eventually(
        const std::function<bool()>& condition, std::chrono::milliseconds limit = std::chrono::seconds(60));
    // Maps what the supervisor holds; once more after the guest was started anew, which gives it new RAM.
    Result<void> map_guest();
    // Waits until the guest's main loop runs on all vCPUs.
    bool guest_started();

    // Of private RAM a copy, as it is now.
    const ::tests::guests::Report& report() const;
    ::tests::guests::Report& writable_report() const;
    const vmm::WitnessSlot* witness() const;
    const handoff::Baton& baton() const { return *baton_; }
    std::span<std::byte> ram() const { return ram_.bytes(); } // guest physical 0 onwards, one block

    pid_t supervisor_pid() const { return supervisor_; }
    pid_t vmm_pid();
    std::string build_id(); // of the binary that runs the guest
    // vCPU 0's main loop makes progress.
    bool goes_on() const;
    // What supervisor and VMM hold now.
    Holdings holdings();
    const std::string& directory() const { return directory_; }
    std::string runtime_directory() const { return directory_ + "/run/vm"; }
    void set_environment() const; // of this process, for the CLI

private:
    LiveVm() = default;
    void reap_orphans() const;

    LiveVmOptions options_;
    std::string directory_;
    pid_t supervisor_ = -1;
    handoff::SharedMapping ram_;
    mutable PrivateRam private_ram_;
    handoff::SharedMapping witness_;
    std::unique_ptr<handoff::Baton> baton_;
};

} // namespace liveupdate::tests
