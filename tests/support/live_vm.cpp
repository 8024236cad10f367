#include "tests/support/live_vm.hpp"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include <linux/kvm.h>

#include "handoff/base/fd.hpp"
#include "supervisor/cli/control_client.hpp"
#include "supervisor/paths.hpp"

extern char** environ;

namespace liveupdate::tests {
namespace {

namespace fs = std::filesystem;
using supervisor::Paths;
constexpr auto kCallTime = std::chrono::seconds(120);

fs::path build_directory() {
    return fs::read_symlink("/proc/self/exe").parent_path().parent_path();
}

Paths paths_in(const std::string& directory) {
    return {directory + "/run", directory + "/state", directory + "/config"};
}

std::string toml(const LiveVmOptions& o) {
    const bool firmware = o.guest.ends_with(".bin");
    std::string cmdline = "vcpus=" + std::to_string(o.vcpus) + " " + o.cmdline;
    if (o.witness) cmdline += " witness=0xfe000000";
    std::string text = "[vmm]\nbinary = \"" + o.vmm + "\"\n";
    if (!o.qemu_toml.empty()) text += "driver = \"qemu\"\n[qemu]\n" + o.qemu_toml;
    text += "[machine]\nvcpus = " + std::to_string(o.vcpus) + "\n";
    text += (firmware ? "firmware = \"" : "kernel = \"") + o.guest + "\"\n";
    if (!o.initrd.empty()) text += "initrd = \"" + o.initrd + "\"\n";
    if (!firmware) text += "cmdline = \"" + cmdline + "\"\n";
    text += "[[memory]]\nsize = \"" + std::to_string(o.memory_mib) + "M\"\nbacking = \"" + o.backing + "\"\n";
    if (o.backing != "memfd" && o.backing != "private")
        text += "directory = \"" + o.backing_directory + "\"\n";
    text += "[console]\n" + o.console_toml + "[update]\n" + o.update_toml;
    if (o.witness) text += "[debug]\nwitness = true\n";
    return text + o.extra_toml;
}

// The fd of another process whose link begins with `target`.
Result<UniqueFd> open_fd_of(pid_t pid, const std::string& target) {
    const std::string directory = "/proc/" + std::to_string(pid) + "/fd";
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(directory, ignored)) {
        const auto link = fs::read_symlink(entry.path(), ignored).string();
        if (link.starts_with(target)) return fd::open(entry.path(), O_RDWR);
    }
    return Error(ErrorCode::kNotFound, "process " + std::to_string(pid) + " has no fd of " + target);
}

} // namespace

std::string why_no_kvm() {
    const UniqueFd kvm(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
    if (!kvm) return "/dev/kvm cannot be opened";
    if (::ioctl(kvm.get(), KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
        return "/dev/kvm does not answer as KVM";
    return {};
}

std::string program(const std::string& name) {
    return build_directory() / "bin" / name;
}
std::string guest_image(const std::string& name) {
    return build_directory() / "tests" / "guests" / name;
}

Result<std::unique_ptr<LiveVm>> LiveVm::start(LiveVmOptions options) {
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);
    if (!options.qemu_toml.empty()) options.witness = false;
    if (options.vmm.empty()) options.vmm = program("liveupdate-vmm");
    if (!options.vmm.starts_with("/")) options.vmm = program(options.vmm);
    if (!options.guest.starts_with("/")) options.guest = guest_image(options.guest);
    std::unique_ptr<LiveVm> vm(new LiveVm);
    vm->options_ = std::move(options);
    char name[] = "/tmp/liveupdate-test-XXXXXX";
    if (::mkdtemp(name) == nullptr) return Error::from_errno("mkdtemp");
    vm->directory_ = name;
    fs::create_directories(vm->directory_ + "/config");
    std::ofstream(vm->directory_ + "/config/vm.toml") << toml(vm->options_);
    TRY(vm->start_supervisor());
    TRY(vm->map_guest());
    return vm;
}

Result<void> LiveVm::restore(
    const std::string& directory, const std::string& binary, const std::vector<std::string>& more) {
    if (!binary.empty()) options_.vmm = program(binary);
    std::ofstream(directory_ + "/config/vm.toml") << toml(options_);
    std::vector<std::string> arguments = {"--restore", directory};
    arguments.insert(arguments.end(), more.begin(), more.end());
    TRY(start_supervisor(arguments));
    return map_guest();
}

Result<void> LiveVm::start_supervisor(const std::vector<std::string>& more) {
    const Paths paths = paths_in(directory_);
    const std::string log = directory_ + "/supervisor.log";
    std::vector<std::string> variables = {"LIVEUPDATE_RUNTIME_DIR=" + paths.runtime_dir,
        "LIVEUPDATE_STATE_DIR=" + paths.state_dir, "LIVEUPDATE_CONFIG_DIR=" + paths.config_dir,
        "LIVEUPDATE_TEST_FAULTS=1"};
    for (char** v = environ; *v != nullptr; ++v)
        if (!std::string_view(*v).starts_with("LIVEUPDATE_")) variables.emplace_back(*v);
    std::vector<char*> environment;
    for (auto& v : variables)
        environment.push_back(v.data());
    environment.push_back(nullptr);
    std::string path = program("liveupdated"), option = "--config", config = paths.config("vm");
    std::vector<char*> argv = {path.data(), option.data(), config.data()};
    std::vector<std::string> rest = more;
    for (std::string& argument : rest)
        argv.push_back(argument.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_addopen(
        &actions, STDOUT_FILENO, log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    ::posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
    const int failed =
        ::posix_spawn(&supervisor_, path.c_str(), &actions, nullptr, argv.data(), environment.data());
    ::posix_spawn_file_actions_destroy(&actions);
    if (failed != 0) return Error(ErrorCode::kSystem, "start " + path, failed);
    const bool answers = eventually(
        [&] {
            if (!supervisor_alive()) return true;
            auto client = supervisor::cli::ControlClient::connect(paths, "vm");
            return static_cast<bool>(client);
        },
        std::chrono::seconds(30));
    if (answers && supervisor_alive()) return {};
    auto words = fd::read_file(log);
    return Error(ErrorCode::kPeerGone, "the supervisor did not start: " + (words ? *words : ""));
}

void LiveVm::kill_supervisor() {
    if (supervisor_ <= 0) return;
    ::kill(supervisor_, SIGKILL);
    ::waitpid(supervisor_, nullptr, 0);
    supervisor_ = -1;
}

bool LiveVm::supervisor_alive() {
    if (supervisor_ <= 0) return false;
    if (::waitpid(supervisor_, nullptr, WNOHANG) == 0) return true;
    supervisor_ = -1;
    return false;
}

void LiveVm::reap_orphans() const {
    siginfo_t info{};
    // Looks before it reaps: the supervisor's own end is somebody else's to see.
    while (::waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid > 0) {
        if (info.si_pid == supervisor_) return;
        ::waitpid(info.si_pid, nullptr, 0);
        info = {};
    }
}

std::optional<int> LiveVm::await_supervisor_end() {
    std::optional<int> result;
    eventually(
        [&] {
            int status = 0;
            if (supervisor_ <= 0 || ::waitpid(supervisor_, &status, WNOHANG) != supervisor_)
                return supervisor_ <= 0;
            supervisor_ = -1;
            result = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            return true;
        },
        std::chrono::seconds(30));
    return result;
}

Holdings LiveVm::holdings() {
    const pid_t vmm = vmm_pid();
    Holdings seen;
    // The connection that has just asked for the pid ends in the supervisor's own time.
    eventually([&] {
        reap_orphans();
        const Holdings before = std::exchange(seen, holdings_of(supervisor_, vmm, directory_));
        return before == seen;
    });
    return seen;
}

std::string LiveVm::build_id() {
    const auto s = status();
    return s.contains("vmm") && s["vmm"].is_object() ? s["vmm"].value("build_id", "") : "";
}

bool LiveVm::goes_on() const {
    const uint64_t before = ::tests::guests::read_field(report().vcpus[0].counter);
    return eventually([&] { return ::tests::guests::read_field(report().vcpus[0].counter) > before + 1; });
}

LiveVm::~LiveVm() {
    if (supervisor_alive()) static_cast<void>(call({{"command", "stop"}}));
    if (supervisor_ > 0) {
        if (!eventually([&] { return !supervisor_alive(); })) kill_supervisor();
    }
    // VMMs that outlived their supervisors are our children now.
    for (const pid_t pid : processes_of(directory_))
        ::kill(pid, SIGKILL);
    const bool gone = eventually([&] {
        reap_orphans();
        return processes_of(directory_).empty();
    });
    if (!gone) std::fprintf(stderr, "LiveVm: processes of %s do not end\n", directory_.c_str());
    std::error_code ignored;
    fs::remove_all(directory_, ignored);
}

Result<nlohmann::json> LiveVm::call(const nlohmann::json& request) {
    TRY_ASSIGN(auto client, supervisor::cli::ControlClient::connect(paths_in(directory_), "vm"));
    return client.call(request, Deadline::after(kCallTime));
}

Result<supervisor::UpdateRecord> LiveVm::update(const std::string& binary, const nlohmann::json& more) {
    nlohmann::json request = {{"command", "update"}, {"kind", "update"}, {"binary", binary}};
    if (more.is_object()) request.update(more);
    TRY_ASSIGN(const nlohmann::json record, call(request));
    return supervisor::record_from_json(record);
}

nlohmann::json LiveVm::status() {
    auto status = call({{"command", "status"}});
    return status ? *status : nlohmann::json{{"state", "unreachable"}, {"error", status.error().message}};
}

pid_t LiveVm::vmm_pid() {
    const auto s = status();
    return s.contains("vmm") && s["vmm"].is_object() ? s["vmm"].value("pid", pid_t{-1}) : -1;
}

bool LiveVm::eventually(const std::function<bool()>& condition, std::chrono::milliseconds limit) {
    const Deadline deadline = Deadline::after(limit);
    while (!condition()) {
        if (deadline.passed()) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return true;
}

Result<void> LiveVm::map_guest() {
    TRY_ASSIGN(const UniqueFd baton_fd, open_fd_of(supervisor_, "/memfd:liveupdate-baton"));
    TRY_ASSIGN(handoff::Baton baton, handoff::Baton::map(baton_fd.get()));
    baton_ = std::make_unique<handoff::Baton>(std::move(baton));
    if (options_.backing == "private") return {};
    const std::string ram = options_.backing == "memfd" ? "/memfd:ram0" : options_.backing_directory + "/";
    TRY_ASSIGN(const UniqueFd ram_fd, open_fd_of(supervisor_, ram));
    TRY_ASSIGN(ram_, handoff::SharedMapping::map(
                         ram_fd.get(), 0, uint64_t{options_.memory_mib} << 20, handoff::MapMode::kShared));
    if (!options_.witness) return {};
    TRY_ASSIGN(const UniqueFd witness_fd, open_fd_of(supervisor_, "/memfd:witness"));
    TRY_ASSIGN(witness_, handoff::SharedMapping::map(witness_fd.get(), 0, 4096, handoff::MapMode::kShared));
    return {};
}

bool LiveVm::guest_started() {
    using ::tests::guests::kReportMagic;
    using ::tests::guests::read_field;
    return eventually(
        [&] {
            return read_field(report().header.magic) == kReportMagic &&
                   read_field(report().header.started) == (uint64_t{1} << options_.vcpus) - 1;
        },
        std::chrono::seconds(30));
}

::tests::guests::Report& LiveVm::writable_report() const {
    return *reinterpret_cast<::tests::guests::Report*>(ram_.data() + ::tests::guests::kReportGpa);
}
const ::tests::guests::Report& LiveVm::report() const {
    if (options_.backing == "private")
        return private_ram_.report(supervisor_, uint64_t{options_.memory_mib} << 20);
    return writable_report();
}

const vmm::WitnessSlot* LiveVm::witness() const {
    return reinterpret_cast<const vmm::WitnessSlot*>(witness_.data());
}

void LiveVm::set_environment() const {
    const Paths paths = paths_in(directory_);
    ::setenv("LIVEUPDATE_RUNTIME_DIR", paths.runtime_dir.c_str(), 1);
    ::setenv("LIVEUPDATE_STATE_DIR", paths.state_dir.c_str(), 1);
    ::setenv("LIVEUPDATE_CONFIG_DIR", paths.config_dir.c_str(), 1);
}

} // namespace liveupdate::tests
