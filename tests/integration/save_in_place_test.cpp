// Guests whose RAM stays where it is when they are saved: on tmpfs, on a disk and in huge pages.
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "handoff/base/fd.hpp"
#include "supervisor/named_ram.hpp"
#include "tests/integration/checks.hpp"
#include "tests/integration/save_checks.hpp"
#include "tests/support/command.hpp"
#include "tests/support/huge_pages.hpp"
#include "tests/support/loop_device.hpp"
#include "tests/support/temporary_folder.hpp"

namespace liveupdate::tests {
namespace {

namespace fs = std::filesystem;
using ::tests::guests::read_field;

// Whether all of a file has been written to its disk; true where the kernel does not tell (before 6.5).
bool is_on_disk(const std::string& path) {
    struct {
        uint64_t cached = 0, dirty = 0, writeback = 0, evicted = 0, recently_evicted = 0;
    } pages;
    struct {
        uint64_t offset = 0, size = 0;
    } all;
    constexpr long kCachestat = 451;
    const auto file = fd::open(path, O_RDONLY);
    REQUIRE(file);
    return ::syscall(kCachestat, file->get(), &all, &pages, 0u) < 0 || pages.dirty + pages.writeback == 0;
}

void check_in_place(LiveVmOptions options, const std::string& home) {
    const uint64_t size = uint64_t{options.memory_mib} << 20;
    const TemporaryFolder there(home);
    const std::string folder = there.at("saved");
    options.backing_directory = fs::path(folder).parent_path();
    const auto vm = started(std::move(options));
    for (int round = 0; round < 3; ++round) {
        const uint64_t counter = read_field(vm->report().vcpus[0].counter);
        const auto report = saved(*vm, folder, {{"kind", "in-place"}});
        CHECK(report["guest"] == "stopped");
        CHECK(report["written_bytes"] < 16 * 4096); // the witness page
        CHECK(vm->await_supervisor_end() == 0);
        CHECK(fs::file_size(folder + "/ram0") == size);
        if (home != "/dev/shm") CHECK(is_on_disk(folder + "/ram0"));
        restored(*vm, folder);
        CHECK(read_field(vm->report().vcpus[0].counter) >= counter);
        check_sound(*vm, 1);
        update_in_turn(*vm, 0, 1);
        // The save has been used up, and the RAM has an owner.
        CHECK_FALSE(fs::exists(file_in(folder)));
        CHECK(supervisor::open_named_ram(folder, "ram0").error().code == ErrorCode::kBusy);
    }
}

TEST_CASE("a guest in files on tmpfs is saved and restored in place") {
    NEEDS_KVM();
    LiveVmOptions options;
    options.backing = "tmpfs";
    options.cmdline = "kvmclock=1 skew_us=1000";
    check_in_place(options, "/dev/shm");
}

TEST_CASE("a guest in files on a disk is saved and restored in place, and is on the disk then") {
    NEEDS_KVM();
    const std::string home = folder_on_disk();
    if (home.empty()) {
        std::printf("SKIPPED: all that tests may write to is on tmpfs\n");
        return;
    }
    LiveVmOptions options;
    options.backing = "file";
    options.guest = "pattern.elf";
    options.cmdline = "limit_mb=48 stride=512";
    check_in_place(options, home);
}

TEST_CASE("a restore in place needs no room on the disk but that of the RAM that is there") {
    NEEDS_KVM();
    if (const std::string why = LoopDevice::why_none(); !why.empty()) {
        std::printf("SKIPPED: %s\n", why.c_str());
        return;
    }
    const TemporaryFolder outside;
    const auto disk = LoopDevice::make(uint64_t{100} << 20);
    REQUIRE(disk);
    const std::string mounted = outside.at("disk");
    fs::create_directory(mounted);
    REQUIRE(run_command({"mke2fs", "-q", "-t", "ext4", "-m", "0", (*disk)->path()}).status == 0);
    REQUIRE(::mount((*disk)->path().c_str(), mounted.c_str(), "ext4", 0, nullptr) == 0);
    LiveVmOptions options;
    options.backing = "file";
    options.backing_directory = mounted;
    options.memory_mib = 64;
    auto vm = started(options);
    saved(*vm, mounted + "/saved", {{"kind", "in-place"}});
    CHECK(vm->await_supervisor_end() == 0);
    restored(*vm, mounted + "/saved");
    check_sound(*vm, 1);
    vm.reset();
    CHECK(::umount(mounted.c_str()) == 0);
    // Nor is a guest started that the disk has no room for.
    options.memory_mib = 128;
    REQUIRE(::mount((*disk)->path().c_str(), mounted.c_str(), "ext4", 0, nullptr) == 0);
    const auto too_large = LiveVm::start(options);
    REQUIRE_FALSE(too_large);
    CHECK_MESSAGE(
        too_large.error().message.find("set aside") != std::string::npos, too_large.error().message);
    CHECK(::umount(mounted.c_str()) == 0);
}

// A hugetlbfs takes no file but RAM, so the save is a folder elsewhere.
TEST_CASE("a guest in huge pages is saved and restored in place") {
    NEEDS_KVM();
    const HugePages pages(40);
    if (!pages.mounted()) {
        std::printf("SKIPPED: no huge pages can be had here\n");
        return;
    }
    LiveVmOptions options;
    options.backing = "hugetlbfs";
    options.backing_directory = pages.path();
    options.guest = "pattern.elf";
    options.cmdline = "limit_mb=48 stride=512";
    auto vm = started(options);
    const TemporaryFolder outside;
    std::string folder;
    for (int round = 0; round < 3; ++round) {
        folder = outside.at("saved" + std::to_string(round % 2));
        const auto report = saved(*vm, folder, {{"kind", "in-place"}});
        CHECK(report["guest"] == "stopped");
        CHECK(vm->await_supervisor_end() == 0);
        CHECK(fs::is_symlink(folder + "/ram0"));
        CHECK(fs::read_symlink(folder + "/ram0").parent_path() == pages.path());
        CHECK(fs::file_size(folder + "/ram0") == options.memory_mib * uint64_t{1} << 20);
        restored(*vm, folder);
        check_sound(*vm, 1);
        update_in_turn(*vm, 0, 2);
        check_sound(*vm, 1);
        CHECK_FALSE(fs::exists(file_in(folder)));
        CHECK(supervisor::open_named_ram(folder, "ram0").error().code == ErrorCode::kBusy);
    }
    const auto refused = vm->call(save_request(pages.path() + "/saved", {{"kind", "in-place"}}));
    REQUIRE_FALSE(refused);
    CHECK_MESSAGE(
        refused.error().message.find("no files but RAM") != std::string::npos, refused.error().message);
    check_sound(*vm, 1);
    // A symbolic link leads nowhere else.
    const std::string elsewhere = outside.at("file");
    std::ofstream(elsewhere) << "mine";
    fs::remove(folder + "/ram0");
    fs::create_symlink(elsewhere, folder + "/ram0");
    CHECK(supervisor::open_named_ram(folder, "ram0").error().code == ErrorCode::kRefused);
    vm.reset(); // before the pages go
}

TEST_CASE("in place is refused for anonymous RAM and on another file system, and the guest runs on") {
    NEEDS_KVM();
    const auto anonymous = started({});
    auto refused = anonymous->call(save_request(anonymous->directory() + "/saved", {{"kind", "in-place"}}));
    REQUIRE_FALSE(refused);
    CHECK(refused.error().message.find("anonymous memory") != std::string::npos);
    check_sound(*anonymous, 1);
    LiveVmOptions options;
    options.backing = "tmpfs";
    const auto on_tmpfs = started(options);
    refused = on_tmpfs->call(save_request(on_tmpfs->directory() + "/saved", {{"kind", "in-place"}}));
    REQUIRE_FALSE(refused);
    CHECK(refused.error().message.find("not on the file system") != std::string::npos);
    check_sound(*on_tmpfs, 1);
}

TEST_CASE("a guest with more RAM than its VM file tells of by now is not saved in place, and runs on") {
    NEEDS_KVM();
    LiveVmOptions options;
    options.backing = "tmpfs";
    options.extra_toml = "[[memory]]\nsize = \"16M\"\nbacking = \"tmpfs\"\ndirectory = \"/dev/shm\"\n";
    const auto vm = started(options);
    const std::string file = vm->directory() + "/config/vm.toml";
    const std::string text = content_of(file);
    vm->kill_supervisor();
    std::ofstream(file, std::ios::trunc) << text.substr(0, text.size() - options.extra_toml.size());
    REQUIRE(vm->start_supervisor());
    const TemporaryFolder shm("/dev/shm");
    const auto refused = vm->call(save_request(shm.at("saved"), {{"kind", "in-place"}}));
    REQUIRE_FALSE(refused);
    CHECK_MESSAGE(
        refused.error().message.find("fewer [[memory]]") != std::string::npos, refused.error().message);
    CHECK_FALSE(fs::exists(shm.at("saved/ram0")));
    check_sound(*vm, 1);
}

} // namespace
} // namespace liveupdate::tests
