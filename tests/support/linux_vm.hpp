// A Linux guest under a real supervisor: tests/linux's kernel and program, with disks that are files, and a
// tap in a network namespace of its own with a peer at its other end.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"
#include "tests/support/live_vm.hpp"
#include "tests/support/net_namespace.hpp"
#include "tests/support/qemu_vm.hpp"
#include "tests/support/temporary_folder.hpp"

namespace liveupdate::tests {

// Why no Linux guest can run here: no KVM, no kernel, no e2fsprogs. Empty when one can.
std::string why_no_linux();
// The same for a guest that QEMU interprets.
std::string why_no_linux_files();
// Whether LIVEUPDATE_TEST_LINUX_KERNEL gives another kernel than the tests' own, which knows virtio on MMIO
// only.
bool other_linux();

enum class Network { kNone, kTap };

// kQemu: the host's QEMU (microvm) by itself, without a supervisor, and so without updates.
enum class Runner { kSupervisor, kQemu };

struct LinuxVmOptions {
    unsigned vcpus = 1;
    unsigned memory_mib = 128;
    unsigned disks = 2;        // empty, for requests at random places
    unsigned file_systems = 1; // more disks, with ext4
    unsigned disk_mib = 64;
    std::vector<std::string> given_disks; // paths, all zero, instead of images for the first disks
    Network network = Network::kTap;
    unsigned net_queues = 1;
    // At most; never more than 64 unanswered. On a software KVM, where ring 0 is interpreted, a guest with 1
    // vCPU that does nothing else answers some 350 a second, beside all the other work 110.
    unsigned ping_hz = 100;
    unsigned peer_pause_us = 10000; // the peer's rest between two parts of its TCP stream
    Runner runner = Runner::kSupervisor;
    std::string work = "lu.clock=1"; // beside the words for disks and network, which are added
    std::string disk_toml;           // in each [[disk]]
    std::string update_toml = kPatientUpdate;
    std::string qemu_toml; // not empty: in QEMU, with this [qemu] section, and qcow2 images of the disks
    std::string vmm;       // path of the first binary; empty: liveupdate-vmm
};

// "name=value" words of a line that begins with `LU result …` or `peer …`.
using Figures = std::map<std::string, uint64_t>;
Figures figures_of(const std::string& line);

// The guest by itself: for a VM with the tests' kernel and program, `words` beside those that the host's KVM
// asks for, or none of these when the guest is `interpreted` by QEMU.
LiveVmOptions bare_linux(const std::string& words, const std::string& console_toml, bool interpreted = false);

class LinuxVm {
public:
    // Returns when the guest's workloads run.
    static Result<std::unique_ptr<LinuxVm>> start(LinuxVmOptions options);
    LinuxVm(const LinuxVm&) = delete;
    LinuxVm& operator=(const LinuxVm&) = delete;
    ~LinuxVm();

    LiveVm& vm() { return *vm_; } // Runner::kSupervisor only
    // Where the tap is; null without one.
    const NetNamespace* network() const { return net_.get(); }
    // All lines of the console so far that begin with "LU `word`".
    std::vector<std::string> lines(const std::string& word) const;
    std::string console() const;
    // Waits for a line "LU `word`…"; false at the limit.
    bool await(const std::string& word, std::chrono::seconds limit) const;
    void type(const std::string& line);

    // The peer pings the guest from now on.
    void ping();
    // Stops the pings and the work, and waits for the guest's closing checks; ends the peer, once all pings
    // are answered; switches the guest off and waits for the end of the supervisor. False when one does not
    // come. (QEMU by itself is left running.)
    bool finish();
    // After finish(): the peer's figures.
    const Figures& peer() const { return peer_figures_; }

    // After finish(): every block of disk `disk` is what the guest was last told. Empty, or what is wrong.
    std::string check_disk(unsigned disk) const;
    // After finish(): e2fsck's words about file system `number`, empty when it is clean.
    std::string check_file_system(unsigned number) const;
    // After finish(): the tap's, of the time when all pings were answered and the guest still had the tap.
    // When it has gone, the host's IPv6 sends some farewells that nobody is there to read, and counts them as
    // dropped.
    const Result<TapCounters>& counters() const { return counters_; }
    const std::string disk_path(unsigned number) const;
    // After finish(): qemu-img's words about the image of disk `number`, empty when it is clean. Makes the
    // raw disk of it, which check_disk() and check_file_system() read.
    std::string check_image(unsigned number) const;

private:
    explicit LinuxVm(LinuxVmOptions options) : options_(std::move(options)) {}
    std::string image_path(unsigned number) const;
    std::string supervisor_log() const;
    Result<void> make_disks();
    Result<void> start_peer();
    Result<void> start_vm();
    Result<void> start_qemu(const std::string& cmdline);
    Result<void> follow_console();
    void say_to_peer(const std::string& line);
    void end_peer();

    const LinuxVmOptions options_;
    TemporaryFolder folder_;
    std::unique_ptr<NetNamespace> net_;
    pid_t peer_ = -1;
    UniqueFd peer_input_;
    Figures peer_figures_;
    Result<TapCounters> counters_ = TapCounters{};
    UniqueFd console_socket_;
    mutable std::mutex mutex_;
    std::string console_;
    std::unique_ptr<LiveVm> vm_;
    std::unique_ptr<QemuVm> qemu_;
    std::jthread follower_;
};

} // namespace liveupdate::tests
