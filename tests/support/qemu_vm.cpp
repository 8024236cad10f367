#include "tests/support/qemu_vm.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "handoff/base/fd.hpp"
#include "tests/support/command.hpp"
#include "tests/support/live_vm.hpp"

extern char** environ;

namespace liveupdate::tests {
namespace {

using ::tests::guests::read_field;

constexpr auto kAnswerTime = std::chrono::seconds(20);
constexpr auto kLook = std::chrono::milliseconds(5);

bool contains(const nlohmann::json& whole, const nlohmann::json& part) {
    return std::all_of(part.items().begin(), part.items().end(),
        [&](const auto& each) { return whole.contains(each.key()) && whole[each.key()] == each.value(); });
}

double ms_of(const nlohmann::json& event) {
    const auto at = event.value("timestamp", nlohmann::json::object());
    return at.value("seconds", 0.0) * 1e3 + at.value("microseconds", 0.0) / 1e3;
}

} // namespace

std::string why_no_qemu() {
    return run_command({"qemu-system-x86_64", "--version"}).status == 0 ? ""
                                                                        : "there is no qemu-system-x86_64";
}

bool under_tcg() {
    const char* wanted = std::getenv("LIVEUPDATE_TEST_ACCEL");
    if (wanted != nullptr && *wanted != '\0') return std::string(wanted) == "tcg";
    return !why_no_kvm().empty();
}

Result<std::unique_ptr<QemuProcess>> QemuProcess::spawn(
    const std::vector<std::string>& arguments, const std::string& monitor, int inherited_fd) {
    std::unique_ptr<QemuProcess> process(new QemuProcess);
    std::vector<char*> argv;
    for (const auto& argument : arguments)
        argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    if (inherited_fd >= 0) ::posix_spawn_file_actions_adddup2(&actions, inherited_fd, inherited_fd);
    const int failed = ::posix_spawnp(&process->pid_, argv[0], &actions, nullptr, argv.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    if (failed != 0) return Error(ErrorCode::kSystem, "start " + arguments[0], failed);
    for (const Deadline deadline = Deadline::after(kAnswerTime);;) {
        auto connected = fd::unix_connect(monitor, SOCK_STREAM);
        if (connected) {
            process->socket_ = std::move(*connected);
            break;
        }
        if (deadline.passed()) return std::move(connected).error().context("QEMU's monitor");
        std::this_thread::sleep_for(kLook);
    }
    TRY(process->next(Deadline::after(kAnswerTime))); // its greeting
    TRY(process->command("qmp_capabilities"));
    return process;
}

QemuProcess::~QemuProcess() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
}

void QemuProcess::quit() {
    if (!command("quit")) return;
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
}

Result<nlohmann::json> QemuProcess::next(Deadline deadline) {
    for (;;) {
        if (const size_t end = received_.find('\n'); end != std::string::npos) {
            auto message = nlohmann::json::parse(received_.substr(0, end), nullptr, false);
            received_.erase(0, end + 1);
            if (message.is_discarded()) return Error(ErrorCode::kProtocol, "QEMU sends what is no JSON");
            return message;
        }
        pollfd polled{socket_.get(), POLLIN, 0};
        if (::poll(&polled, 1, deadline.poll_ms()) <= 0)
            return Error(ErrorCode::kTimeout, "QEMU does not answer");
        char bytes[4096];
        const ssize_t n = ::read(socket_.get(), bytes, sizeof bytes);
        if (n <= 0) return Error(ErrorCode::kPeerGone, "QEMU has closed its monitor");
        received_.append(bytes, static_cast<size_t>(n));
    }
}

Result<nlohmann::json> QemuProcess::command(const std::string& name, const nlohmann::json& arguments) {
    nlohmann::json order{{"execute", name}};
    if (!arguments.is_null()) order["arguments"] = arguments;
    const std::string line = order.dump() + "\n";
    if (::send(socket_.get(), line.data(), line.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(line.size()))
        return Error::from_errno("QMP command " + name);
    for (const Deadline deadline = Deadline::after(kAnswerTime);;) {
        TRY_ASSIGN(nlohmann::json message, next(deadline).context(name));
        if (message.contains("return")) return message["return"];
        if (message.contains("error"))
            return Error(ErrorCode::kRefused, name + ": " + message["error"].value("desc", "?"));
        events_.push_back(std::move(message));
    }
}

Result<nlohmann::json> QemuProcess::await_event(const std::string& name, const nlohmann::json& data) {
    const nlohmann::json wanted = data.is_null() ? nlohmann::json::object() : data;
    const auto fits = [&](const nlohmann::json& event) {
        return event.value("event", "") == name &&
               contains(event.value("data", nlohmann::json::object()), wanted);
    };
    const auto kept = std::find_if(events_.begin(), events_.end(), fits);
    if (kept != events_.end()) {
        nlohmann::json event = std::move(*kept);
        events_.erase(kept);
        return event;
    }
    for (const Deadline deadline = Deadline::after(kAnswerTime);;) {
        TRY_ASSIGN(nlohmann::json event, next(deadline).context("wait for " + name));
        if (fits(event)) return event;
        events_.push_back(std::move(event));
    }
}

Result<std::unique_ptr<QemuVm>> QemuVm::start(QemuOptions options) {
    std::unique_ptr<QemuVm> vm(new QemuVm(std::move(options)));
    char name[] = "/dev/shm/liveupdate-qemu-XXXXXX";
    if (::mkdtemp(name) == nullptr) return Error::from_errno("mkdtemp");
    vm->directory_ = name;
    const uint64_t size = uint64_t{vm->options_.memory_mib} << 20;
    const std::string ram = vm->directory_ + "/ram";
    const UniqueFd file(::open(ram.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!file || ::ftruncate(file.get(), static_cast<off_t>(size)) != 0)
        return Error::from_errno("make " + ram);
    TRY_ASSIGN(vm->ram_, handoff::SharedMapping::map(file.get(), 0, size, handoff::MapMode::kShared));
    TRY_ASSIGN(vm->process_, vm->spawn(false));
    return vm;
}

QemuVm::~QemuVm() {
    next_.reset();
    process_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
}

std::vector<std::string> QemuVm::arguments(const std::string& monitor) const {
    const std::string mib = std::to_string(options_.memory_mib), vcpus = std::to_string(options_.vcpus);
    const std::string& guest = options_.guest;
    // Not every KVM lets IA32_ARCH_CAPABILITIES be set, and QEMU dies of that.
    std::vector<std::string> all{"qemu-system-x86_64", "-accel", "kvm", "-cpu", "host,-arch-capabilities",
        "-M", options_.machine + ",memory-backend=m0", "-m", mib, "-smp", vcpus, "-nodefaults",
        "-no-user-config", "-display", "none", "-no-reboot", "-object",
        "memory-backend-file,id=m0,size=" + mib + "M,share=on,mem-path=" + directory_ + "/ram", "-serial",
        options_.serial.empty() ? "null" : "unix:" + options_.serial + ",server=on,wait=off", "-kernel",
        guest.starts_with("/") ? guest : guest_image(guest), "-append", options_.cmdline + " vcpus=" + vcpus,
        "-qmp", "unix:" + monitor + ",server=on,wait=off"};
    const auto add = [&](std::initializer_list<std::string> more) { all.insert(all.end(), more); };
    if (!options_.initrd.empty()) add({"-initrd", options_.initrd});
    if (!options_.disks.empty()) add({"-object", "iothread,id=io"});
    const bool network = !options_.tap.empty() || options_.tap_fd >= 0;
    if (!options_.disks.empty() || network) add({"-global", "virtio-mmio.force-legacy=false"});
    for (size_t i = 0; i < options_.disks.size(); ++i) {
        const std::string id = "disk" + std::to_string(i), &path = options_.disks[i];
        const std::string driver = std::filesystem::is_block_file(path) ? "host_device" : "file";
        add({"-blockdev", "driver=" + driver + ",node-name=" + id + ",filename=" + path +
                              ",locking=off,cache.direct=on,aio=io_uring,discard=unmap"});
        add({"-device", "virtio-blk-device,iothread=io,drive=" + id + ",num-queues=" + vcpus});
    }
    // In a tap with headers, a QEMU that merely starts would set their size for the one that has it.
    const std::string which = options_.tap_fd >= 0 ? "fd=" + std::to_string(options_.tap_fd)
                                                   : "script=no,downscript=no,ifname=" + options_.tap;
    if (network)
        add({"-netdev", "tap,id=net0,vhost=off," + which, "-device", "virtio-net-device,netdev=net0"});
    return all;
}

Result<std::unique_ptr<QemuProcess>> QemuVm::spawn(bool incoming) {
    const std::string monitor = directory_ + "/qmp-" + std::to_string(started_++);
    auto all = arguments(monitor);
    if (incoming) all.insert(all.end(), {"-incoming", "defer"});
    return QemuProcess::spawn(all, monitor, options_.tap_fd);
}

bool QemuVm::guest_started() const {
    const auto& header = report().header;
    const uint64_t all = (uint64_t{1} << options_.vcpus) - 1;
    return LiveVm::eventually(
        [&] {
            return read_field(header.magic) == ::tests::guests::kReportMagic &&
                   read_field(header.started) == all;
        },
        std::chrono::seconds(30));
}

Result<void> QemuVm::prepare() {
    TRY_ASSIGN(next_, spawn(true));
    const auto on = [](const char* name) { return nlohmann::json{{"capability", name}, {"state", true}}; };
    const nlohmann::json capabilities{
        {"capabilities", nlohmann::json::array({on("events"), on("x-ignore-shared")})}};
    process_->forget_events(); // it has been a destination
    for (QemuProcess* process : {process_.get(), next_.get()})
        TRY(process->command("migrate-set-capabilities", capabilities));
    TRY(process_->command("migrate-set-parameters", {{"max-bandwidth", int64_t{1} << 40}}));
    TRY(next_->command("migrate-incoming", {{"uri", "unix:" + directory_ + "/migration"}}));
    return {};
}

Result<void> QemuVm::switch_over() {
    TRY(process_->command("migrate", {{"uri", "unix:" + directory_ + "/migration"}}));
    TRY_ASSIGN(const nlohmann::json resumed, next_->await_event("RESUME"));
    TRY(process_->await_event("MIGRATION", {{"status", "completed"}}));
    TRY_ASSIGN(const nlohmann::json stopped, process_->await_event("STOP"));
    TRY_ASSIGN(const nlohmann::json told, process_->command("query-migrate"));
    downtime_ms_ = told.value("downtime", 0.0);
    stopped_ms_ = ms_of(resumed) - ms_of(stopped);
    resumed_at_ =
        std::chrono::system_clock::time_point(std::chrono::duration_cast<std::chrono::system_clock::duration>(
            std::chrono::duration<double, std::milli>(ms_of(resumed))));
    return {};
}

void QemuVm::finish() {
    process_->quit();
    process_ = std::move(next_);
}

} // namespace liveupdate::tests
