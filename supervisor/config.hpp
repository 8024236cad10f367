// A VM's TOML file, read strictly: docs and defaults are told beside each field here.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "handoff/base/result.hpp"
#include "supervisor/host_forward.hpp"
#include "supervisor/mac_address.hpp"
#include "supervisor/vnc_config.hpp"

namespace liveupdate::supervisor {

enum class Backing { kMemfd, kTmpfs, kHugetlbfs, kPrivate, kFile }; // kPrivate: QEMU's own
enum class ConsoleType { kPty, kFile, kSocket, kNone };
enum class ConsoleDevice { kSerial, kVirtio };
enum class Rehearse { kAlways, kPlan, kNever };
enum class OnLost { kStop, kRestart };
enum class DriverKind { kNative, kQemu };
enum class DiskFormat { kRaw, kQcow2 };
enum class NetType { kTap, kUser };

// The words of the file.
std::string_view to_string(Backing backing);
std::string_view to_string(ConsoleType type);
std::string_view to_string(ConsoleDevice device);
std::string_view to_string(Rehearse rehearse);
std::string_view to_string(OnLost on_lost);
std::string_view to_string(DriverKind driver);
std::string_view to_string(DiskFormat format);
std::string_view to_string(NetType type);

constexpr std::string_view kDefaultVmmBinary = "/usr/libexec/liveupdate/liveupdate-vmm";
constexpr std::string_view kDefaultQemuBinary = "/usr/bin/qemu-system-x86_64";

// [qemu]: what only a guest of QEMU has.
struct QemuConfig {
    std::string machine = "q35"; // a type, and options after commas; pinned to a version by the first start
    std::string cpu = "host";
    std::string accel = "kvm";           // or "tcg"
    std::optional<VncConfig> vnc;        // where the screen is shown; none: nowhere
    std::vector<std::string> extra_args; // for every QEMU of the guest
    // Of an adopted guest: all arguments of all its QEMUs, in place of what the rest of the file would make.
    std::vector<std::string> command_line;
};

// One [[memory]] block; in the order of the file they follow each other in guest physical memory.
struct MemoryConfig {
    uint64_t size = 0; // bytes; a multiple of 4 KiB, of 2 MiB for hugetlbfs
    Backing backing = Backing::kMemfd;
    std::string directory; // where the unlinked file is made; empty for memfd and private
};

// One [[disk]]; the first is disk0, for Linux vda.
struct DiskConfig {
    std::string path; // a raw file or a block device; for QEMU an image of the format below
    DiskFormat format = DiskFormat::kRaw;
    bool read_only = false; // for the guest; others may read it too
    bool direct = true;     // past the host's page cache
    std::string serial;     // what the guest sees, at most 20 bytes; empty: "disk0" and so on
    unsigned queues = 1;    // 1..16; in the file by default one for each vCPU
};

// One [[net]]: a network card on a tap device of the host, or, for QEMU, on its own user-mode network.
struct NetConfig {
    NetType type = NetType::kTap;
    std::string tap; // an existing device's name
    MacAddress mac{};
    unsigned queues = 1;              // pairs; 1..8
    std::vector<HostForward> hostfwd; // of type user: ports of the host that lead to the guest
};

struct VmConfig {
    std::string name; // the file's stem; check_vm_name() has accepted it
    std::string path; // of the file, as it was given

    DriverKind driver = DriverKind::kNative;
    std::string vmm_binary{kDefaultVmmBinary};
    QemuConfig qemu; // driver kQemu only

    unsigned vcpus = 1;                       // 1..64
    std::string cpu_template = "x86-64-v2.1"; // only a name here; the VMM knows which there are
    std::string kernel;   // ELF or bzImage; exactly one of kernel and firmware is set; for
                          // QEMU at most one
    std::string initrd;   // for the kernel; empty: none
    std::string firmware; // a flat image of at most 16 MiB; the size is not checked here
    std::string cmdline;  // for the kernel
    bool rng = true;      // a source of entropy

    std::vector<MemoryConfig> memory; // one or more, at least 16 MiB in sum

    std::vector<DiskConfig> disks; // at most 8
    std::vector<NetConfig> nets;   // at most 8

    ConsoleType console = ConsoleType::kPty;
    ConsoleDevice console_device = ConsoleDevice::kSerial;
    std::string console_path; // file only

    Rehearse rehearse = Rehearse::kAlways;
    std::chrono::microseconds probation = std::chrono::seconds(2);
    std::chrono::microseconds blackout_limit =
        std::chrono::milliseconds(100);                           // then the source takes the guest back
    std::chrono::microseconds timeout = std::chrono::seconds(30); // preparing and rehearsing together
    bool populate = true; // fill the destination's page tables beforehand

    OnLost on_lost = OnLost::kStop;
    // How long a guest that has been asked to power off may take; 0: it is not asked.
    std::chrono::microseconds stop_timeout = std::chrono::seconds(30);
    std::string owner; // may use the control socket; empty: only root and the supervisor's own user
    std::string group; // its members may use the control socket; empty: none

    bool witness = false; // map the witness page, which tests read

    uint64_t memory_bytes() const;
};

// Pure: touches no file. `path` gives the VM's name, is named in errors, and its folder is what relative
// paths in the file start from. Paths in the result are absolute when `path` is. kInvalid with one line
// "path:line:column: what is wrong" for each thing that is wrong, in the order of the file.
Result<VmConfig> parse_vm_config(std::string_view toml, const std::string& path);

// Reads the file (at most 1 MiB) and parses it; the result's paths are absolute.
Result<VmConfig> load_vm_config(const std::string& path);

} // namespace liveupdate::supervisor
