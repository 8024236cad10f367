// How guests start, what memory and consoles they may have, and that an update keeps all of it.
#include <fcntl.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "handoff/base/fd.hpp"
#include "tests/integration/checks.hpp"
#include "tests/support/command.hpp"
#include "tests/support/huge_pages.hpp"
#include "tests/support/temporary_folder.hpp"

namespace liveupdate::tests {
namespace {

namespace fs = std::filesystem;
using ::tests::guests::read_field;
using ::tests::guests::write_field;

TEST_CASE("a firmware image runs from its reset vector and ends the VM with its status") {
    NEEDS_KVM();
    const TemporaryFolder folder;
    std::ofstream(folder.at("vm.toml"))
        << "[vmm]\nbinary = \"" << program("liveupdate-vmm") << "\"\n[machine]\nfirmware = \""
        << guest_image("firmware.bin")
        << "\"\n[[memory]]\nsize = \"16M\"\n[console]\ntype = \"file\"\npath = \"" << folder.at("console")
        << "\"\n";
    const auto ended = run_command({program("liveupdated"), "--config", folder.at("vm.toml")},
        {"LIVEUPDATE_RUNTIME_DIR=" + folder.at("run"), "LIVEUPDATE_STATE_DIR=" + folder.at("state")});
    CHECK(!ended.timed_out);
    CHECK_MESSAGE(ended.status == 0, ended.err);
    const auto console = fd::read_file(folder.at("console"));
    REQUIRE(console);
    CHECK(*console == "firmware ok\n");
}

void pattern_survives(LiveVmOptions options, uint64_t least_bytes) {
    options.guest = "pattern.elf";
    options.cmdline = "step=1 stride=4096";
    // Populating much RAM yields to whatever else the host does.
    options.update_toml = "probation = \"20ms\"\ntimeout = \"110s\"\n";
    const auto vm = started(options);
    auto& header = vm->writable_report().header;
    const auto& pattern = vm->report().vcpus[0].pattern;
    CHECK(read_field(header.pattern_bytes) > least_bytes);
    update_in_turn(*vm, 0, 1); // populates, which makes the passes fast
    for (unsigned pass = 1; pass <= 2; ++pass) {
        write_field(header.go, pass);
        REQUIRE(
            LiveVm::eventually([&] { return read_field(pattern.passes) >= pass; }, std::chrono::seconds(60)));
        update_in_turn(*vm, pass, 1);
    }
    CHECK(read_field(pattern.slots_verified) > 0);
    CHECK(read_field(pattern.mismatches) == 0);
    check_sound(*vm, 1);
}

constexpr uint64_t kMiB = 1 << 20;

TEST_CASE("a guest whose RAM is made of two blocks keeps both") {
    NEEDS_KVM();
    LiveVmOptions options;
    options.extra_toml = "[[memory]]\nsize = \"64M\"\n";
    pattern_survives(options, 100 * kMiB);
}

TEST_CASE("a guest keeps RAM on both sides of the PCI hole") {
    NEEDS_KVM();
    LiveVmOptions options;
    options.memory_mib = 3072 + 64;
    pattern_survives(options, 3100 * kMiB);
}

size_t files_in(const std::string& directory) {
    size_t count = 0;
    for ([[maybe_unused]] const auto& entry : fs::directory_iterator(directory))
        ++count;
    return count;
}

TEST_CASE("RAM in tmpfs files is kept, and leaves no file behind") {
    NEEDS_KVM();
    const TemporaryFolder folder; // for a tmpfs of its own, where we may mount one
    LiveVmOptions options;
    options.backing = "tmpfs";
    fs::create_directory(folder.at("ram"));
    if (::mount("none", folder.at("ram").c_str(), "tmpfs", 0, nullptr) == 0)
        options.backing_directory = folder.at("ram");
    const size_t before = files_in(options.backing_directory);
    pattern_survives(options, 50 * kMiB);
    CHECK(files_in(options.backing_directory) == before);
    ::umount(folder.at("ram").c_str());
}

TEST_CASE("RAM in files on a disk is kept, and leaves no file behind") {
    NEEDS_KVM();
    if (folder_on_disk().empty()) {
        std::printf("SKIPPED: all that tests may write to is on tmpfs\n");
        return;
    }
    const TemporaryFolder folder(folder_on_disk());
    LiveVmOptions options;
    options.backing = "file";
    options.backing_directory = folder.at("ram");
    fs::create_directory(options.backing_directory);
    options.memory_mib = 64;
    pattern_survives(options, 50 * kMiB);
    CHECK(files_in(options.backing_directory) == 0);
}

TEST_CASE("RAM in hugetlbfs files is kept") {
    NEEDS_KVM();
    const HugePages pages(48);
    if (!pages.mounted()) {
        std::printf("SKIPPED: no huge pages can be had here\n");
        return;
    }
    LiveVmOptions options;
    options.backing = "hugetlbfs";
    options.backing_directory = pages.path();
    options.memory_mib = 64;
    pattern_survives(options, 50 * kMiB);
    CHECK(files_in(pages.path()) == 0);
}

TEST_CASE("RAM in a folder of another file system is refused in words before the guest is started") {
    NEEDS_KVM();
    const TemporaryFolder shm("/dev/shm");
    const auto why_not = [](const std::string& backing, const std::string& directory) {
        LiveVmOptions options;
        options.backing = backing;
        options.backing_directory = directory;
        const auto started = LiveVm::start(options);
        REQUIRE_FALSE(started);
        return started.error().message;
    };
    for (const char* backing : {"hugetlbfs", "file"}) {
        const std::string why = why_not(backing, shm.at(""));
        CHECK_MESSAGE(
            why.find("is on a tmpfs, and backing is '" + std::string(backing)) != std::string::npos, why);
        CHECK_MESSAGE(why.find("write backing = \"tmpfs\"") != std::string::npos, why);
    }
    if (folder_on_disk().empty()) return;
    const std::string why = why_not("tmpfs", folder_on_disk());
    CHECK_MESSAGE(why.find("is on a disk's file system, and backing is 'tmpfs'") != std::string::npos, why);
}

// Reads a serial guest's lines and checks that each follows the one before; echoes are kept apart.
class LineReader {
public:
    explicit LineReader(int fd) : fd_(fd) {}

    // Reads on until `count` more numbered lines have come.
    bool read_lines(unsigned count) {
        const uint64_t wanted = lines_ + count;
        while (lines_ < wanted) {
            pollfd polled{fd_, POLLIN, 0};
            char buffer[4096];
            if (::poll(&polled, 1, 10'000) != 1) return false;
            const ssize_t n = ::read(fd_, buffer, sizeof(buffer));
            if (n <= 0) return false;
            text_.append(buffer, static_cast<size_t>(n));
            take_lines();
        }
        return true;
    }
    const std::string& echoes() const { return echoes_; }
    const std::string& wrong() const { return wrong_; }

private:
    void take_lines() {
        for (size_t end = 0; (end = text_.find('\n')) != std::string::npos; text_.erase(0, end + 1))
            take(text_.substr(0, end));
    }
    void take(const std::string& line) {
        if (line.starts_with(">")) {
            echoes_ += line + "\n";
            return;
        }
        unsigned long long number = 0;
        const bool whole =
            std::sscanf(line.c_str(), "line %8llu ............", &number) == 1 && line.size() == 26;
        // The first may have been cut, as nobody was there yet.
        if ((!whole || number != next_) && lines_ > 0 && wrong_.empty())
            wrong_ = "'" + line + "' where line " + std::to_string(next_) + " was due";
        if (!whole && lines_ == 0) return;
        next_ = number + 1;
        ++lines_;
    }

    int fd_;
    std::string text_, echoes_, wrong_;
    uint64_t lines_ = 0, next_ = 0;
};

void console_survives(const std::string& type, const std::function<UniqueFd(const std::string&)>& open) {
    LiveVmOptions options;
    options.guest = "serial.elf";
    options.cmdline = "irq=1 pace_us=200";
    options.console_toml = "type = \"" + type + "\"\n";
    const auto vm = started(options);
    const UniqueFd console = open(vm->status()["console"]["path"]);
    REQUIRE(console);
    LineReader reader(console.get());
    REQUIRE(reader.read_lines(20));
    for (unsigned n = 0; n < 6; ++n) {
        const std::string word = "hello " + std::to_string(n) + "\n";
        REQUIRE(::write(console.get(), word.data(), word.size()) == static_cast<ssize_t>(word.size()));
        update_in_turn(*vm, n, 1);
        REQUIRE(reader.read_lines(50));
    }
    CHECK(
        LiveVm::eventually([&] { return reader.read_lines(1) && reader.echoes().ends_with(">hello 5\n"); }));
    CHECK(reader.echoes() == ">hello 0\n>hello 1\n>hello 2\n>hello 3\n>hello 4\n>hello 5\n");
    CHECK_MESSAGE(reader.wrong().empty(), reader.wrong());
    check_sound(*vm, 1);
}

TEST_CASE("a client of a console socket stays connected through updates and misses no byte") {
    NEEDS_KVM();
    console_survives("socket", [](const std::string& path) {
        auto connected = fd::unix_connect(path, SOCK_STREAM);
        return connected ? std::move(*connected) : UniqueFd();
    });
}

TEST_CASE("a reader of a console terminal misses no byte through updates") {
    NEEDS_KVM();
    console_survives("pty", [](const std::string& path) {
        return UniqueFd(::open(path.c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC));
    });
}

void reset_restarts(::tests::guests::StopCommand how, unsigned updates) {
    const auto vm = started({});
    update_in_turn(*vm, 0, updates);
    const pid_t before = vm->vmm_pid();
    write_field(vm->writable_report().header.stop, how);
    REQUIRE(LiveVm::eventually([&] {
        const pid_t now = vm->vmm_pid();
        return now > 0 && now != before;
    }));
    REQUIRE(vm->map_guest());
    REQUIRE(vm->guest_started());
    check_sound(*vm, 1);
    update_in_turn(*vm, updates, 2);
    check_sound(*vm, 1);
}

TEST_CASE("a reset by the keyboard controller starts the guest anew, also after an update") {
    NEEDS_KVM();
    reset_restarts(::tests::guests::kStopResetByKeyboard, 0);
    reset_restarts(::tests::guests::kStopResetByKeyboard, 1);
}

TEST_CASE("a reset by port 0xCF9 starts the guest anew, also after an update") {
    NEEDS_KVM();
    reset_restarts(::tests::guests::kStopResetByPort, 0);
    reset_restarts(::tests::guests::kStopResetByPort, 1);
}

TEST_CASE("a guest that is asked to end ends its VM and the supervisor") {
    NEEDS_KVM();
    const auto vm = started({});
    update_in_turn(*vm, 0, 1);
    write_field(vm->writable_report().header.stop, ::tests::guests::kStopExit);
    CHECK(vm->await_supervisor_end() == 0);
    CHECK(LiveVm::eventually([&] { return processes_of(vm->directory()).empty(); }));
}

TEST_CASE("a guest that powers itself off ends its VM and the supervisor, also after an update") {
    NEEDS_KVM();
    for (const unsigned updates : {0u, 1u}) {
        const auto vm = started({});
        update_in_turn(*vm, 0, updates);
        write_field(vm->writable_report().header.stop, ::tests::guests::kStopPowerOff);
        CHECK(vm->await_supervisor_end() == 0);
        CHECK(LiveVm::eventually([&] { return processes_of(vm->directory()).empty(); }));
    }
}

// What became of the guest in a `stop` that gives it `timeout_ms`, after it has obeyed `command`.
std::string stop_after(::tests::guests::StopCommand command, unsigned timeout_ms, unsigned updates) {
    const auto vm = started({});
    if (command != ::tests::guests::kStopNone) {
        write_field(vm->writable_report().header.stop, command);
        REQUIRE(LiveVm::eventually(
            [&] { return read_field(vm->report().header.stop) == ::tests::guests::kStopNone; }));
    }
    update_in_turn(*vm, 0, updates);
    CHECK(read_field(vm->report().header.errors) == 0); // the PM timer goes with the TSC
    const auto stopped = vm->call({{"command", "stop"}, {"timeout_ms", timeout_ms}});
    REQUIRE_MESSAGE(stopped.has_value(), (stopped ? "" : stopped.error().message));
    CHECK((*stopped)["state"] == "stopped");
    CHECK(vm->await_supervisor_end() == 0);
    CHECK(LiveVm::eventually([&] { return processes_of(vm->directory()).empty(); }));
    return (*stopped)["guest"];
}

TEST_CASE("a guest that listens to its power button is asked before it is stopped, also after updates") {
    NEEDS_KVM();
    CHECK(stop_after(::tests::guests::kStopByButton, 60'000, 0) == "powered-off");
    CHECK(stop_after(::tests::guests::kStopByButton, 60'000, 2) == "powered-off");
    CHECK(stop_after(::tests::guests::kStopByButton, 0, 0) == "cut");
}

TEST_CASE("a guest that does not power off in time, or does not listen, has its power cut") {
    NEEDS_KVM();
    CHECK(stop_after(::tests::guests::kStopNotByButton, 300, 0) == "timed-out");
    CHECK(stop_after(::tests::guests::kStopNone, 60'000, 0) == "cut");
}

} // namespace
} // namespace liveupdate::tests
