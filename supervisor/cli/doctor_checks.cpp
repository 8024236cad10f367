#include "supervisor/cli/doctor_checks.hpp"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "handoff/base/fd.hpp"
#include "supervisor/binary.hpp"
#include "supervisor/cli/control_client.hpp"
#include "supervisor/cli/json_view.hpp"
#include "supervisor/cli/start_command.hpp"
#include "supervisor/cli/vms.hpp"
#include "supervisor/config.hpp"
#include "supervisor/units.hpp"
#include "systemd/scope.hpp"

namespace liveupdate::supervisor::cli {
namespace {

constexpr int kKvmApi = 12;
constexpr rlim_t kWantedFiles = 1024;

struct Capability {
    int number;
    const char* name;
    Verdict without;
    const char* used_for;
};
// Numbers from the kernel's include/uapi/linux/kvm.h; written out where Debian 12's header is older.
constexpr std::array kCapabilities = {
    Capability{KVM_CAP_USER_MEMORY, "USER_MEMORY", Verdict::kFail, "guest RAM"},
    Capability{KVM_CAP_IRQCHIP, "IRQCHIP", Verdict::kFail, "the in-kernel interrupt controllers"},
    Capability{KVM_CAP_PIT2, "PIT2", Verdict::kFail, "the in-kernel timer"},
    Capability{KVM_CAP_PIT_STATE2, "PIT_STATE2", Verdict::kFail, "carrying the timer across"},
    Capability{KVM_CAP_MP_STATE, "MP_STATE", Verdict::kFail, "carrying halted vCPUs across"},
    Capability{KVM_CAP_VCPU_EVENTS, "VCPU_EVENTS", Verdict::kFail, "carrying pending interrupts across"},
    Capability{KVM_CAP_IMMEDIATE_EXIT, "IMMEDIATE_EXIT", Verdict::kFail, "stopping vCPUs at a clean point"},
    Capability{KVM_CAP_ADJUST_CLOCK, "ADJUST_CLOCK", Verdict::kFail, "carrying kvmclock across"},
    Capability{KVM_CAP_XSAVE, "XSAVE", Verdict::kFail, "carrying vector registers across"},
    Capability{KVM_CAP_XSAVE2, "XSAVE2", Verdict::kWarn, "guests with vector registers above 4 KiB (AMX)"},
    Capability{KVM_CAP_XCRS, "XCRS", Verdict::kWarn, "carrying XCR0 across"},
    Capability{KVM_CAP_DEBUGREGS, "DEBUGREGS", Verdict::kWarn, "carrying debug registers across"},
    Capability{KVM_CAP_VCPU_ATTRIBUTES, "VCPU_ATTRIBUTES", Verdict::kWarn,
        "the exact TSC offset; without it the guest's TSC is set by value, which is less exact"},
    Capability{KVM_CAP_KVMCLOCK_CTRL, "KVMCLOCK_CTRL", Verdict::kWarn, "keeping the guest's watchdog quiet"},
    Capability{236, "PRE_FAULT_MEMORY", Verdict::kWarn,
        "filling the destination's second-level page tables; another way is taken without it"},
};

Check ok(std::string name, std::string found) {
    return {std::move(name), Verdict::kOk, std::move(found), ""};
}
Check fail(std::string name, const Error& error, std::string advice) {
    return {std::move(name), Verdict::kFail, error.message, std::move(advice)};
}

void check_capabilities(int kvm, std::vector<Check>& checks) {
    for (const Capability& capability : kCapabilities) {
        const std::string name = std::string("KVM_CAP_") + capability.name;
        if (::ioctl(kvm, KVM_CHECK_EXTENSION, capability.number) > 0) {
            checks.push_back(ok(name, "present"));
            continue;
        }
        checks.push_back({name, capability.without, std::string("missing; used for ") + capability.used_for,
            capability.without == Verdict::kFail ? "use a kernel whose KVM has it" : ""});
    }
}

Check check_memfd() {
    auto memory = fd::memfd_create("doctor", MFD_ALLOW_SEALING);
    if (!memory) return fail("memfd", memory.error(), "use a kernel with CONFIG_MEMFD_CREATE");
    if (::ftruncate(memory->get(), 4096) < 0 ||
        ::fcntl(memory->get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0)
        return fail("memfd", Error::from_errno("seal a memfd"), "use a kernel with memfd sealing");
    return ok("memfd", "can be made and sealed");
}

Check check_hugepages() {
    const char* const path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    const auto text = fd::read_file(path, 64);
    const std::string free = text ? text->substr(0, text->find('\n')) : "";
    if (text && free != "0") return ok("huge pages", free + " of 2 MiB are free");
    return {"huge pages", Verdict::kWarn, text ? "none of 2 MiB is free" : "this kernel has none of 2 MiB",
        "needed only for backing = \"hugetlbfs\"; reserve some with sysctl vm.nr_hugepages=N"};
}

// The folder, or the nearest one above it that is there.
Check check_writable(const char* name, std::string path) {
    const std::string wanted = path;
    while (path.size() > 1 && ::access(path.c_str(), F_OK) < 0)
        path.resize(std::max<size_t>(path.rfind('/'), 1));
    if (::access(path.c_str(), W_OK | X_OK) == 0) return ok(name, wanted + " can be written");
    return fail(name, Error::from_errno("write to " + path),
        "run as another user, or choose a folder by its $LIVEUPDATE_… variable");
}

Check check_files() {
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    const std::string found = std::to_string(limit.rlim_cur) + " open files";
    if (limit.rlim_cur >= kWantedFiles) return ok("RLIMIT_NOFILE", found);
    return {"RLIMIT_NOFILE", Verdict::kWarn, found,
        "raise it to " + std::to_string(kWantedFiles) + " (ulimit -n)"};
}

Check check_locked() {
    rlimit limit{};
    ::getrlimit(RLIMIT_MEMLOCK, &limit);
    // Told only: nothing here locks memory, but an operator may want guests' RAM locked.
    return ok("RLIMIT_MEMLOCK", limit.rlim_cur == RLIM_INFINITY ? "unlimited" : human_size(limit.rlim_cur));
}

Check check_binary(const std::string& path) {
    const auto binary = inspect_binary(path);
    if (!binary) return fail("VMM binary", binary.error(), "install it, or correct 'binary' in [vmm]");
    return ok("VMM binary", path + ", build " + short_build_id(binary->build_id));
}

pid_t supervisor_pid(const Paths& paths, const std::string& name) {
    const auto text = fd::read_file(paths.supervisor_pid(name), 64);
    pid_t pid = 0;
    if (text) std::from_chars(text->data(), text->data() + text->size(), pid);
    return pid;
}

// The unit of a VM whose supervisor runs under a service manager.
std::optional<systemd::ServiceUnit> unit_of(const Paths& paths, const std::string& name) {
    const pid_t pid = supervisor_pid(paths, name);
    if (pid <= 0) return std::nullopt;
    auto unit = systemd::service_of(pid);
    if (!unit || unit->name != "liveupdate@" + name + ".service") return std::nullopt;
    return unit;
}

std::string where_it_logs(const Paths& paths, const std::string& name) {
    const auto unit = unit_of(paths, name);
    if (!unit) return "see " + paths.supervisor_log(name);
    const bool of_user = unit->manager == systemd::Manager::kUser;
    return std::string("see `journalctl ") + (of_user ? "--user " : "") + "-u " + unit->name + "`";
}

Check check_supervisor(const Paths& paths, const std::string& name) {
    const std::string title = "supervisor of " + name;
    const auto client = ControlClient::connect(paths, name);
    if (!client && client.error().code == ErrorCode::kNotFound)
        return fail(title, client.error(),
            "run `" + start_command(paths, name) + "`: it adopts a VMM that still runs");
    const auto status = vm_status(paths, name);
    if (!status) return fail(title, status.error(), where_it_logs(paths, name));
    const std::string state = text_at(*status, "/state", "unknown");
    if (state == "lost")
        return {title, Verdict::kFail, "the guest is lost", "run `liveupdate history " + name + "`"};
    return ok(title, "answers: " + state);
}

} // namespace

std::string_view to_string(Verdict verdict) {
    constexpr std::array<std::string_view, 3> kWords = {"ok", "warn", "fail"};
    return kWords[static_cast<size_t>(verdict)];
}

std::vector<Check> check_kvm() {
    std::vector<Check> checks;
    const auto kvm = fd::open("/dev/kvm", O_RDWR);
    if (!kvm) {
        const bool missing = kvm.error().system_errno == ENOENT;
        checks.push_back(fail("/dev/kvm", kvm.error(),
            missing ? "load kvm_intel or kvm_amd, or allow nested virtualisation"
                    : "become a member of its group, often 'kvm'"));
        return checks;
    }
    checks.push_back(ok("/dev/kvm", "can be opened"));
    const int version = ::ioctl(kvm->get(), KVM_GET_API_VERSION, 0);
    checks.push_back(
        {"KVM API", version == kKvmApi ? Verdict::kOk : Verdict::kFail, "version " + std::to_string(version),
            version == kKvmApi ? "" : "version 12 is needed; use a kernel since 2.6.22"});
    const UniqueFd vm(::ioctl(kvm->get(), KVM_CREATE_VM, 0));
    checks.push_back(vm ? ok("KVM VM", "can be made")
                        : fail("KVM VM", Error::from_errno("KVM_CREATE_VM"), "see the kernel's log (dmesg)"));
    check_capabilities(kvm->get(), checks);
    return checks;
}

std::vector<Check> check_host(const Paths& paths) {
    return {check_memfd(), check_hugepages(), check_writable("runtime folder", paths.runtime_dir),
        check_writable("state folder", paths.state_dir), check_files(), check_locked()};
}

std::vector<Check> check_vms(const Paths& paths) {
    std::vector<Check> checks;
    std::set<std::string> binaries;
    for (const auto& name : known_vms(paths)) {
        if (::access(paths.config(name).c_str(), F_OK) < 0) continue;
        const auto config = load_vm_config(paths.config(name));
        if (config)
            binaries.insert(config->vmm_binary);
        else
            checks.push_back(fail("file of " + name, config.error(), "correct it"));
    }
    if (binaries.empty()) binaries.insert(std::string(kDefaultVmmBinary));
    for (const auto& path : binaries)
        checks.push_back(check_binary(path));
    for (const auto& name : vms_with_socket(paths))
        checks.push_back(check_supervisor(paths, name));
    return checks;
}

} // namespace liveupdate::supervisor::cli
