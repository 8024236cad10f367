// QEMUs that something else has started, taken over by `liveupdate adopt`.
#include <spawn.h>
#include <sys/socket.h>

#include "handoff/base/fd.hpp"
#include "supervisor/qemu/qmp.hpp"
#include "tests/integration/qemu_checks.hpp"
#include "tests/integration/world.hpp"
#include "tests/support/private_ram.hpp"

extern char** environ;

namespace liveupdate::tests {
namespace {

using supervisor::ExitCode;
using ::tests::guests::read_field;

constexpr uint64_t kMemory = uint64_t{64} << 20;

// As a person or another program would start one: by hand, with a monitor of its own.
class OwnQemu {
public:
    OwnQemu(const World& world, std::vector<std::string> more) {
        const std::string config = qemu_guest().qemu_toml;
        const bool tcg = config.find("tcg") != std::string::npos;
        std::vector<std::string> all = {kQemuPath, "-name", world.at(""), "-M", "q35", "-accel",
            tcg ? "tcg" : "kvm", "-cpu", tcg ? "max" : "host,-arch-capabilities", "-m", "64", "-nodefaults",
            "-display", "none", "-kernel", guest_image("clock.elf"), "-append", "vcpus=1 skew_us=1000",
            "-qmp", "unix:" + world.at("monitor") + ",server=on,wait=off"};
        all.insert(all.end(), more.begin(), more.end());
        std::vector<char*> argv;
        for (std::string& argument : all)
            argv.push_back(argument.data());
        argv.push_back(nullptr);
        REQUIRE(::posix_spawn(&pid_, kQemuPath, nullptr, nullptr, argv.data(), environ) == 0);
        REQUIRE(LiveVm::eventually([&] { return std::filesystem::exists(world.at("monitor")); }));
    }
    OwnQemu(const OwnQemu&) = delete;
    OwnQemu& operator=(const OwnQemu&) = delete;
    ~OwnQemu() {
        if (::waitpid(pid_, nullptr, WNOHANG) != 0) return;
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
    }
    pid_t pid() const { return pid_; }
    bool gone() const { return ::waitpid(pid_, nullptr, WNOHANG) != 0 || ::kill(pid_, 0) != 0; }

private:
    pid_t pid_ = -1;
};

// The guest's main loop goes on, without an error, in whichever process it is.
void check_goes_on(PrivateRam& ram, pid_t supervisor) {
    const auto counter = [&] { return read_field(ram.report(supervisor, kMemory).vcpus[0].counter); };
    REQUIRE(LiveVm::eventually([&] { return counter() > 0; }, std::chrono::seconds(30)));
    const uint64_t before = counter();
    CHECK(LiveVm::eventually([&] { return counter() > before + 1; }));
    CHECK(read_field(ram.report(supervisor, kMemory).header.errors) == 0);
}

TEST_CASE("a QEMU that somebody has started is adopted, updated by postcopy, and found again") {
    NEEDS_QEMU();
    const World world;
    const OwnQemu own(world, {});
    PrivateRam ram;
    check_goes_on(ram, ::getpid());
    world.expect(ExitCode::kDone, {"adopt", "web", "--qmp", world.at("monitor"), "--dry-run"}, "by postcopy");
    CHECK(!std::filesystem::exists(world.at("config/web.toml")));
    world.expect(ExitCode::kDone, {"adopt", "web", "--qmp", world.at("monitor")}, "running");
    CHECK(world.status("web").at("vmm").at("pid") == own.pid());
    // A supervisor that dies is followed by one that finds the QEMU again.
    const auto change_supervisor = [&] {
        const pid_t supervisor = world.status("web").at("supervisor").at("pid");
        ::kill(supervisor, SIGKILL);
        REQUIRE(LiveVm::eventually(
            [&] { return ::kill(supervisor, 0) != 0 || ::waitpid(supervisor, nullptr, WNOHANG) > 0; }));
        world.expect(ExitCode::kDone, {"start", "web"}, "running");
    };
    change_supervisor();
    CHECK(world.status("web").at("vmm").at("pid") == own.pid());
    const OtherQemu other;
    world.expect(ExitCode::kDone, {"plan", "web", "--binary", other.path()}, "by postcopy");
    world.expect(ExitCode::kDone, {"now", "web", "--binary", other.path()}, "updated");
    change_supervisor(); // while whoever started the first QEMU has not noticed yet that it has ended
    CHECK(LiveVm::eventually([&] { return own.gone(); }));
    check_goes_on(ram, world.status("web").at("supervisor").at("pid"));
    world.expect(ExitCode::kDone, {"now", "web"}, "updated");
    check_goes_on(ram, world.status("web").at("supervisor").at("pid"));
    CHECK(world.status("web").at("vmm").at("binary") == kQemuPath);
    world.expect(ExitCode::kDone, {"stop", "web", "--now"}, "stopped");
    // And it can be started once more, from what is in its file by now.
    world.expect(ExitCode::kDone, {"start", "web"}, "running");
    check_goes_on(ram, world.status("web").at("supervisor").at("pid"));
    world.expect(ExitCode::kDone, {"stop", "web", "--now"}, "stopped");
}

TEST_CASE("an adopted guest whose RAM is a shared file is updated by x-ignore-shared") {
    NEEDS_QEMU();
    const World world;
    const OwnQemu own(
        world, {"-object", "memory-backend-file,id=m0,size=64M,share=on,mem-path=" + world.at("ram"),
                   "-machine", "memory-backend=m0"});
    world.expect(ExitCode::kDone, {"adopt", "web", "--qmp", world.at("monitor")}, "by x-ignore-shared");
    const auto record = world.read({"now", "web", "--json"}).at(0);
    CHECK_MESSAGE(record.value("outcome", "") == "completed", record.dump());
    CHECK(record.value("way", "") == "x-ignore-shared");
    CHECK(LiveVm::eventually([&] { return own.gone(); }));
    CHECK(world.status("web").at("state") == "running");
}

TEST_CASE("what stands in the way of an update is told, and the QEMU left alone") {
    NEEDS_QEMU();
    const World world;
    const OwnQemu own(world, {"-serial", "unix:" + world.at("serial") + ",server=on,wait=off"});
    world.expect(
        ExitCode::kRefused, {"adopt", "web", "--qmp", world.at("monitor")}, "would take away from this one");
    CHECK(!std::filesystem::exists(world.at("config/web.toml")));
    CHECK(!std::filesystem::exists(world.at("run/web")));
    PrivateRam ram;
    check_goes_on(ram, ::getpid());
}

TEST_CASE("a monitor that somebody else uses, or that is none, is told as such") {
    NEEDS_QEMU();
    const World world;
    const OwnQemu own(world, {});
    auto socket = fd::unix_connect(world.at("monitor"), SOCK_STREAM);
    REQUIRE(socket.has_value());
    auto theirs =
        supervisor::qemu::QmpChannel::open(std::move(*socket), Deadline::after(std::chrono::seconds(10)));
    REQUIRE(theirs.has_value());
    const auto result = world.run({"adopt", "web", "--qmp", world.at("monitor")});
    CHECK(result.status != 0);
    CHECK_MESSAGE(result.err.find("another program may be connected") != std::string::npos, result.err);
    CHECK(world.run({"adopt", "web", "--qmp", world.at("nothing")}).err.find("nothing") != std::string::npos);
    CHECK(!std::filesystem::exists(world.at("config/web.toml")));
}

} // namespace
} // namespace liveupdate::tests
