#include "tests/support/linux_vm.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "handoff/base/fd.hpp"
#include "tests/linux/pattern.hpp"
#include "tests/support/command.hpp"

extern char** environ;

namespace liveupdate::tests {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr const char* kTap = "tap0";
constexpr const char* kHostAddress = "10.77.0.1";
constexpr const char* kGuestAddress = "10.77.0.2";
constexpr auto kBootTime = 150s; // on emulated hardware
constexpr auto kClosingTime = 300s;

constexpr const char* kOtherKernel = "LIVEUPDATE_TEST_LINUX_KERNEL";

constexpr const char* kClosed = "\n[the VMM has closed the console]\n";

// On a KVM without VMX and SVM under it, ring 0 lacks some instructions, and calibration takes seconds.
constexpr const char* kSoftwareKvm =
    " nokaslr mitigations=off tsc=reliable no_timer_check lpj=13000000 random.trust_cpu=1 rodata=off "
    "clearcpuid=smap,smep,umip,fsgsbase,pcid,invpcid,xsave,cx16,pku,la57,popcnt,erms,fsrm";

std::string content_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

bool hardware_kvm() {
    std::istringstream words(content_of("/proc/cpuinfo"));
    for (std::string word; words >> word;)
        if (word == "vmx" || word == "svm") return true;
    return false;
}

std::string from_environment(const char* variable, const std::string& otherwise) {
    const char* value = std::getenv(variable);
    return value != nullptr ? value : otherwise;
}

std::string linux_file(const std::string& name) {
    return fs::path(program("")).parent_path().parent_path() / "tests" / "linux" / name;
}
// Another kernel with an initramfs of its own may be given, such as a distribution's.
std::string kernel_path() {
    return from_environment(kOtherKernel, linux_file("kernel/vmlinux"));
}
std::string initrd_path() {
    return from_environment("LIVEUPDATE_TEST_LINUX_INITRD", linux_file("initrd.cpio"));
}

std::string work_words(const LinuxVmOptions& options) {
    std::string words = " " + options.work;
    for (unsigned i = 0; i < options.disks; ++i)
        words += (i == 0 ? " lu.disk=vd" : ",vd") + std::string(1, static_cast<char>('a' + i));
    for (unsigned i = 0; i < options.file_systems; ++i)
        words +=
            (i == 0 ? " lu.files=vd" : ",vd") + std::string(1, static_cast<char>('a' + options.disks + i));
    if (options.network == Network::kTap)
        words += std::string(" lu.address=") + kGuestAddress + " lu.peer=" + kHostAddress;
    return words;
}

Result<void> make_file_system(const std::string& path) {
    const auto made = run_command({"mke2fs", "-q", "-F", "-t", "ext4", path});
    if (made.status == 0) return {};
    return Error(ErrorCode::kSystem, "mke2fs " + path + ": " + made.err);
}

} // namespace

std::string why_no_linux() {
    const std::string why = why_no_kvm();
    return why.empty() ? why_no_linux_files() : why;
}

bool other_linux() {
    return !from_environment(kOtherKernel, "").empty();
}

std::string why_no_linux_files() {
    for (const std::string& path : {kernel_path(), initrd_path()})
        if (!fs::exists(path)) return "there is no " + path + " (see tests/linux/README.md)";
    if (run_command({"mke2fs", "-V"}).status != 0) return "there is no mke2fs (package e2fsprogs)";
    return {};
}

Figures figures_of(const std::string& line) {
    Figures figures;
    std::istringstream words(line);
    for (std::string word; words >> word;)
        if (const auto equals = word.find('='); equals != std::string::npos)
            figures[word.substr(0, equals)] = std::strtoull(word.c_str() + equals + 1, nullptr, 0);
    return figures;
}

LiveVmOptions bare_linux(const std::string& words, const std::string& console_toml, bool interpreted) {
    LiveVmOptions live;
    live.guest = kernel_path();
    live.initrd = initrd_path();
    live.memory_mib = LinuxVmOptions().memory_mib;
    live.witness = false;
    live.console_toml = console_toml;
    live.cmdline = "console=ttyS0 panic=-1 reboot=k" +
                   std::string(interpreted || hardware_kvm() ? "" : kSoftwareKvm) + " " +
                   from_environment("LIVEUPDATE_TEST_LINUX_CMDLINE", "") + words;
    return live;
}

const std::string LinuxVm::disk_path(unsigned number) const {
    if (number < options_.given_disks.size()) return options_.given_disks[number];
    return folder_.at("disk" + std::to_string(number) + ".img");
}

std::string LinuxVm::image_path(unsigned number) const {
    return options_.qemu_toml.empty() ? disk_path(number) : disk_path(number) + ".qcow2";
}

std::string LinuxVm::check_image(unsigned number) const {
    const auto checked = run_command({"qemu-img", "check", "-q", image_path(number)});
    if (checked.status != 0) return checked.out + checked.err;
    const auto made = run_command(
        {"qemu-img", "convert", "-f", "qcow2", "-O", "raw", image_path(number), disk_path(number)});
    return made.status == 0 ? "" : made.out + made.err;
}

Result<void> LinuxVm::make_disks() {
    for (auto i = static_cast<unsigned>(options_.given_disks.size());
         i < options_.disks + options_.file_systems; ++i) {
        TRY_ASSIGN(const UniqueFd file, fd::open(disk_path(i), O_RDWR | O_CREAT, 0600));
        if (::ftruncate(file.get(), off_t{options_.disk_mib} << 20) != 0)
            return Error::from_errno("ftruncate");
        if (i >= options_.disks) TRY(make_file_system(disk_path(i)));
        if (options_.qemu_toml.empty()) continue;
        const auto made =
            run_command({"qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk_path(i), image_path(i)});
        if (made.status != 0) return Error(ErrorCode::kSystem, "qemu-img convert: " + made.err);
    }
    return {};
}

Result<void> LinuxVm::start_peer() {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) return Error::from_errno("pipe2");
    const UniqueFd reader(ends[0]);
    peer_input_ = UniqueFd(ends[1]);
    std::string path = program("linux_host_peer"), guest = kGuestAddress;
    std::string rate = "--ping-hz", hz = std::to_string(options_.ping_hz);
    std::string rest = "--tcp-pause-us", us = std::to_string(options_.peer_pause_us);
    char* argv[] = {path.data(), guest.data(), rate.data(), hz.data(), rest.data(), us.data(), nullptr};
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, reader.get(), STDIN_FILENO);
    ::posix_spawn_file_actions_addopen(
        &actions, STDOUT_FILENO, folder_.at("peer.log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    const int failed = ::posix_spawn(&peer_, path.c_str(), &actions, nullptr, argv, environ);
    ::posix_spawn_file_actions_destroy(&actions);
    if (failed != 0) return Error(ErrorCode::kSystem, "start " + path, failed);
    const bool ready =
        LiveVm::eventually([&] { return content_of(folder_.at("peer.log")).find("peer ready") == 0; });
    if (!ready) return Error(ErrorCode::kPeerGone, "linux_host_peer does not get ready");
    return {};
}

Result<void> LinuxVm::start_qemu(const std::string& cmdline) {
    QemuOptions qemu;
    qemu.guest = kernel_path();
    qemu.initrd = initrd_path();
    qemu.cmdline = cmdline;
    qemu.vcpus = options_.vcpus;
    qemu.memory_mib = options_.memory_mib;
    qemu.machine = "microvm,rtc=on";
    qemu.serial = folder_.at("console.sock");
    for (unsigned i = 0; i < options_.disks + options_.file_systems; ++i)
        qemu.disks.push_back(disk_path(i));
    if (net_) qemu.tap = kTap;
    TRY_ASSIGN(qemu_, QemuVm::start(std::move(qemu)));
    return {};
}

Result<void> LinuxVm::start_vm() {
    LiveVmOptions live = bare_linux(work_words(options_),
        options_.qemu_toml.empty() ? "type = \"socket\"\n" : "type = \"pty\"\n",
        !options_.qemu_toml.empty() && under_tcg());
    if (options_.runner == Runner::kQemu) return start_qemu(live.cmdline);
    live.vcpus = options_.vcpus;
    live.memory_mib = options_.memory_mib;
    live.vmm = options_.vmm;
    live.qemu_toml = options_.qemu_toml;
    live.update_toml = options_.update_toml;
    for (unsigned i = 0; i < options_.disks + options_.file_systems; ++i)
        live.extra_toml += "[[disk]]\npath = \"" + image_path(i) + "\"\n" + options_.disk_toml;
    if (net_)
        live.extra_toml += std::string("[[net]]\ntap = \"") + kTap +
                           "\"\nqueues = " + std::to_string(options_.net_queues) + "\n";
    TRY_ASSIGN(vm_, LiveVm::start(std::move(live)));
    return {};
}

Result<void> LinuxVm::follow_console() {
    const std::string console = (vm_ ? vm_->runtime_directory() : folder_.at("")) + "/console";
    if (options_.qemu_toml.empty()) {
        TRY_ASSIGN(console_socket_, fd::unix_connect(console + ".sock", SOCK_STREAM));
    } else {
        TRY_ASSIGN(console_socket_, fd::open(console, O_RDWR | O_NOCTTY));
    }
    follower_ = std::jthread([this](const std::stop_token& stop) {
        char bytes[4096];
        while (!stop.stop_requested()) {
            pollfd poll{console_socket_.get(), POLLIN, 0};
            if (::poll(&poll, 1, 100) <= 0) continue;
            const ssize_t n = ::read(console_socket_.get(), bytes, sizeof(bytes));
            const std::lock_guard lock(mutex_);
            if (n <= 0) {
                console_ += kClosed;
                return;
            }
            for (ssize_t i = 0; i < n; ++i)
                if (bytes[i] != '\r') console_ += bytes[i];
        }
    });
    return {};
}

Result<std::unique_ptr<LinuxVm>> LinuxVm::start(LinuxVmOptions options) {
    std::unique_ptr<LinuxVm> made(new LinuxVm(std::move(options)));
    TRY(made->make_disks());
    std::optional<NetNamespace::Stay> stay;
    if (made->options_.network == Network::kTap) {
        TRY_ASSIGN(made->net_,
            NetNamespace::make(kTap, std::string(kHostAddress) + "/24", made->options_.net_queues));
        stay.emplace(*made->net_);
        TRY(made->start_peer());
    }
    TRY(made->start_vm());
    TRY(made->follow_console());
    if (!made->await("working", kBootTime))
        return Error(ErrorCode::kTimeout, "the Linux guest did not start to work; its console:\n" +
                                              made->console() + made->supervisor_log());
    return made;
}

LinuxVm::~LinuxVm() {
    follower_ = {};
    vm_.reset();
    qemu_.reset();
    if (peer_ > 0) {
        ::kill(peer_, SIGKILL);
        ::waitpid(peer_, nullptr, 0);
    }
}

std::string LinuxVm::supervisor_log() const {
    return vm_ ? "\nThe supervisor:\n" + content_of(vm_->directory() + "/supervisor.log") : "";
}

std::string LinuxVm::console() const {
    const std::lock_guard lock(mutex_);
    return console_;
}

std::vector<std::string> LinuxVm::lines(const std::string& word) const {
    std::vector<std::string> found;
    std::istringstream all(console());
    for (std::string line; std::getline(all, line);)
        if (const auto at = line.find("LU " + word); at != std::string::npos && !all.eof())
            found.push_back(line.substr(at));
    return found;
}

bool LinuxVm::await(const std::string& word, std::chrono::seconds limit) const {
    const auto over = [&] { return !lines(word).empty() || console().find(kClosed) != std::string::npos; };
    return LiveVm::eventually(over, limit) && !lines(word).empty();
}

void LinuxVm::type(const std::string& line) {
    const std::string bytes = line + "\n";
    ssize_t done = ::send(console_socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (done < 0 && errno == ENOTSOCK) done = ::write(console_socket_.get(), bytes.data(), bytes.size());
    if (done < 0) std::fprintf(stderr, "LinuxVm: the console does not take '%s'\n", line.c_str());
}

void LinuxVm::say_to_peer(const std::string& line) {
    if (peer_input_ && ::write(peer_input_.get(), line.data(), line.size()) < 0)
        std::fprintf(stderr, "LinuxVm: the peer does not take '%s'", line.c_str());
}

void LinuxVm::ping() {
    say_to_peer("ping\n");
}

void LinuxVm::end_peer() {
    if (peer_ <= 0) return;
    peer_input_ = {};
    if (!LiveVm::eventually([&] { return ::waitpid(peer_, nullptr, WNOHANG) == peer_; }, 30s)) return;
    peer_ = -1;
    const std::string log = content_of(folder_.at("peer.log"));
    if (const auto last = log.rfind("peer tcp_received"); last != std::string::npos)
        peer_figures_ = figures_of(log.substr(last));
}

bool LinuxVm::finish() {
    say_to_peer("quiet\n");
    type("stop");
    if (!await("summary", kClosingTime)) return false;
    end_peer(); // it hears the end of the guest's stream, and the guest still answers pings
    if (net_) counters_ = net_->counters();
    if (!vm_) return true;
    type("poweroff");
    return vm_->await_supervisor_end() == 0;
}

std::string LinuxVm::check_disk(unsigned disk) const {
    const auto models = lines("model disk=" + std::to_string(disk) + " ");
    if (models.empty()) return "the guest tells no model of disk " + std::to_string(disk);
    const auto hash = std::strtoull(models[0].c_str() + models[0].find("hash=") + 5, nullptr, 16);
    Figures model = figures_of(models[0]);
    std::ifstream file(disk_path(disk), std::ios::binary);
    linux_guest::Block found{}, expected{};
    uint64_t sum = 0;
    for (uint64_t block = 0; block < model["blocks"]; ++block) {
        if (!file.read(reinterpret_cast<char*>(found.data()), sizeof(found))) return "the disk is too short";
        const auto header = linux_guest::header_of(found);
        linux_guest::fill_block(expected, disk, block, header.generation);
        if (found != expected) return "block " + std::to_string(block) + " is damaged";
        sum += linux_guest::model_part(block, header.generation);
    }
    if (sum != hash) return "a block is not of the generation that the guest was told of";
    return model["written"] > 0 ? "" : "nothing was written";
}

std::string LinuxVm::check_file_system(unsigned number) const {
    const auto checked = run_command({"e2fsck", "-fn", disk_path(options_.disks + number)});
    return checked.status == 0 ? "" : checked.out + checked.err;
}

} // namespace liveupdate::tests
