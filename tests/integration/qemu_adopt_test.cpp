// QEMUs that something else has started, taken over by `liveupdate adopt`.
#include <spawn.h>
#include <sys/socket.h>

#include <algorithm>
#include <optional>

#include "handoff/base/fd.hpp"
#include "handoff/base/listening.hpp"
#include "supervisor/cli/control_client.hpp"
#include "supervisor/config.hpp"
#include "supervisor/qemu/foreign_qemu.hpp"
#include "supervisor/qemu/qemu_driver.hpp"
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
        // The socket's file is there a moment before anybody listens.
        REQUIRE(LiveVm::eventually([&] { return is_listening(world.at("monitor")); }));
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
    void end() {
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
    }

private:
    pid_t pid_ = -1;
};

const std::vector<std::string> kNothing;

std::vector<std::string> in_shared_file(const World& world) {
    return {"-object", "memory-backend-file,id=m0,size=64M,share=on,mem-path=" + world.at("ram"), "-machine",
        "memory-backend=m0"};
}

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
    const OwnQemu own(world, in_shared_file(world));
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

void kill_supervisor(const World& world) {
    const pid_t supervisor = world.status("web").at("supervisor").at("pid");
    ::kill(supervisor, SIGKILL);
    REQUIRE(LiveVm::eventually(
        [&] { return ::kill(supervisor, 0) != 0 || ::waitpid(supervisor, nullptr, WNOHANG) > 0; }));
}

TEST_CASE("the name of a VM that runs is refused, and its monitor is left to it") {
    NEEDS_QEMU();
    const World world;
    const OwnQemu first(world, kNothing);
    world.expect(ExitCode::kDone, {"adopt", "web", "--qmp", world.at("monitor")}, "running");
    const OtherQemu other;
    world.expect(ExitCode::kDone, {"now", "web", "--binary", other.path()}, "updated");
    const auto vmm = world.status("web").at("vmm").at("pid");
    std::filesystem::rename(world.at("config/web.toml"), world.at("web.toml"));
    std::filesystem::remove(world.at("monitor"));
    const OwnQemu second(world, kNothing);
    world.expect(
        ExitCode::kRefused, {"adopt", "web", "--qmp", world.at("monitor")}, "a supervisor of 'web' runs");
    const pid_t supervisor = world.status("web").at("supervisor").at("pid");
    kill_supervisor(world);
    world.expect(ExitCode::kRefused, {"adopt", "web", "--qmp", world.at("monitor")}, "a QEMU of 'web' runs");
    std::filesystem::rename(world.at("web.toml"), world.at("config/web.toml"));
    world.expect(ExitCode::kDone, {"start", "web"}, "running");
    CHECK(world.status("web").at("supervisor").at("pid") != supervisor);
    CHECK(world.status("web").at("vmm").at("pid") == vmm);
    CHECK(!::waitpid(second.pid(), nullptr, WNOHANG));
}

TEST_CASE("a supervisor that cannot be started leaves nothing of ours beside the guest") {
    NEEDS_QEMU();
    const World world;
    const OwnQemu own(world, kNothing);
    std::ofstream(world.at("state")) << "no folder";
    CHECK(world.run({"adopt", "web", "--qmp", world.at("monitor")}).status != 0);
    CHECK(!std::filesystem::exists(world.at("config/web.toml")));
    CHECK(!std::filesystem::exists(world.at("run/web/qemu/adopted.json")));
    CHECK(!std::filesystem::is_symlink(world.at("run/web/qemu/qmp-1.sock")));
    PrivateRam ram;
    check_goes_on(ram, ::getpid());
    std::filesystem::remove(world.at("state"));
    world.expect(ExitCode::kDone, {"adopt", "web", "--qmp", world.at("monitor")}, "running");
    CHECK(world.status("web").at("vmm").at("pid") == own.pid());
}

TEST_CASE("another QEMU that listens at the socket by now is not taken for the one that was adopted") {
    NEEDS_QEMU();
    const World world;
    OwnQemu adopted(world, kNothing);
    world.expect(ExitCode::kDone, {"adopt", "web", "--qmp", world.at("monitor")}, "running");
    kill_supervisor(world);
    adopted.end();
    std::filesystem::remove(world.at("monitor"));
    const OwnQemu other(world, kNothing);
    world.expect(ExitCode::kDone, {"start", "web"}, "running");
    CHECK(world.status("web").at("vmm").at("pid") != other.pid());
    CHECK(!std::filesystem::exists(world.at("run/web/qemu/adopted.json")));
    world.expect(ExitCode::kDone, {"stop", "web", "--now"}, "stopped");
    PrivateRam ram;
    check_goes_on(ram, ::getpid());
}

TEST_CASE("a QEMU that hangs is neither waited for without end nor forgotten") {
    NEEDS_QEMU();
    const World world;
    const OwnQemu own(world, kNothing);
    world.expect(ExitCode::kDone, {"adopt", "web", "--qmp", world.at("monitor")}, "running");
    kill_supervisor(world);
    ::kill(own.pid(), SIGSTOP);
    // Others have filled the queue of its monitor.
    std::vector<UniqueFd> waiting;
    const auto full = [&] {
        auto next = fd::unix_connect(world.at("monitor"), SOCK_STREAM, Deadline::after({}));
        if (next) waiting.push_back(std::move(*next));
        return !next && next.error().code == ErrorCode::kTimeout;
    };
    REQUIRE(LiveVm::eventually(full));
    const auto result = world.run({"start", "web"});
    CHECK(result.status != 0);
    CHECK_MESSAGE((result.out + result.err).find("takes no more connections") != std::string::npos,
        result.out, result.err);
    CHECK(std::filesystem::is_symlink(world.at("run/web/qemu/qmp-1.sock")));
    waiting.clear();
    ::kill(own.pid(), SIGCONT);
    world.expect(ExitCode::kDone, {"start", "web"}, "running");
    CHECK(world.status("web").at("vmm").at("pid") == own.pid());
}

// The driver of a VM "web" whose QEMU has been found, as a supervisor has it that follows another one.
class Successor {
public:
    Successor(const World& world, const OwnQemu& own)
        : paths_{world.at("run"), world.at("state"), world.at("config")} {
        auto found = supervisor::qemu::inspect_foreign(world.at("monitor"), limit());
        REQUIRE_MESSAGE(found, found.error().message);
        REQUIRE(found->adopted.pid == own.pid());
        std::filesystem::create_directories(world.at("run/web"));
        const auto kept =
            supervisor::qemu::keep_adopted(world.at("run/web/qemu"), found->adopted, world.at("monitor"));
        REQUIRE_MESSAGE(kept, kept.error().message);
        std::ofstream(world.at("config/web.toml")) << supervisor::qemu::vm_file_of(*found);
        auto config = supervisor::load_vm_config(world.at("config/web.toml"));
        REQUIRE_MESSAGE(config, config.error().message);
        config_ = std::move(*config);
        driver_.emplace(config_, paths_);
    }
    ~Successor() { driver_->let_go(); }

    supervisor::qemu::QemuDriver& driver() { return *driver_; }
    static Deadline limit() { return Deadline::after(std::chrono::seconds(10)); }

private:
    supervisor::Paths paths_;
    supervisor::VmConfig config_;
    std::optional<supervisor::qemu::QemuDriver> driver_;
};

// A word as the service manager keeps it, of a guest that number 1 has had, and has still or has not.
handoff::NamedFds kept_word(handoff::Participant owner) {
    auto segment = handoff::Baton::create_segment(41);
    REQUIRE(segment.has_value());
    auto baton = handoff::Baton::map(segment->get());
    REQUIRE(baton.has_value());
    REQUIRE(baton->claim(1));
    if (owner != 1) {
        REQUIRE(baton->offer(1, owner));
        REQUIRE(baton->take(owner));
    }
    handoff::NamedFds kept;
    kept["baton"] = std::move(*segment);
    return kept;
}

// Gives the guest away, to nobody.
void give_away(const World& world) {
    const auto limit = Successor::limit();
    auto socket = fd::unix_connect(world.at("monitor"), SOCK_STREAM, limit);
    REQUIRE(socket.has_value());
    auto monitor = supervisor::qemu::QmpChannel::open(std::move(*socket), limit);
    REQUIRE(monitor.has_value());
    REQUIRE(monitor->execute("migrate", {{"uri", "exec:cat >/dev/null"}}, limit).has_value());
    REQUIRE(LiveVm::eventually([&] {
        const auto status = monitor->execute("query-status", nullptr, limit);
        return status && supervisor::qemu::word_in(*status, "status") == "postmigrate";
    }));
}

TEST_CASE("an adopted QEMU goes on with the word that was kept of its guest") {
    NEEDS_QEMU();
    const World world;
    const OwnQemu own(world, kNothing);
    Successor next(world, own);
    const auto kept = kept_word(1);
    const auto adopted = next.driver().adopt(kept);
    REQUIRE_MESSAGE(adopted, adopted.error().message);
    CHECK(*adopted == supervisor::Adoption::kAdopted);
    const auto all = next.driver().keepsakes();
    const auto word =
        std::find_if(all.begin(), all.end(), [](const auto& each) { return each.name == "baton"; });
    REQUIRE(word != all.end());
    const auto baton = handoff::Baton::map(word->fd);
    REQUIRE(baton.has_value());
    CHECK(baton->read().epoch == 42);
    CHECK(baton->held_by(1));
}

TEST_CASE("an adopted QEMU that has given its guest away never runs it again") {
    NEEDS_QEMU();
    for (const bool word_is_kept : {false, true}) {
        CAPTURE(word_is_kept);
        const World world;
        const OwnQemu own(world, kNothing);
        Successor next(world, own);
        give_away(world);
        const auto adopted = next.driver().adopt(word_is_kept ? kept_word(2) : handoff::NamedFds());
        REQUIRE_MESSAGE(adopted, adopted.error().message);
        CHECK(*adopted == (word_is_kept ? supervisor::Adoption::kEnded : supervisor::Adoption::kNobody));
        CHECK(own.gone());
    }
}

TEST_CASE("an adopted QEMU that runs its guest is left alone by who has another word of it") {
    NEEDS_QEMU();
    const World world;
    const OwnQemu own(world, kNothing);
    Successor next(world, own);
    const auto adopted = next.driver().adopt(kept_word(2));
    REQUIRE(!adopted.has_value());
    CHECK_MESSAGE(adopted.error().message.find("one of the two is wrong") != std::string::npos,
        adopted.error().message);
    PrivateRam ram;
    check_goes_on(ram, ::getpid());
}

TEST_CASE("the first QEMU of an adopted guest does not run it again when the second one has it and dies") {
    NEEDS_QEMU();
    const World world;
    const OwnQemu own(world, in_shared_file(world));
    world.expect(ExitCode::kDone, {"adopt", "web", "--qmp", world.at("monitor")}, "by x-ignore-shared");
    const supervisor::Paths paths{world.at("run"), world.at("state"), world.at("config")};
    auto client = supervisor::cli::ControlClient::connect(paths, "web");
    REQUIRE(client.has_value());
    const pid_t supervisor = world.status("web").at("supervisor").at("pid");
    const nlohmann::json fault = {{"phase", "committing"}, {"victim", "supervisor"}, {"action", "kill"}};
    CHECK(!client->call({{"command", "update"}, {"kind", "update"}, {"fault", fault}}, Successor::limit()));
    REQUIRE(LiveVm::eventually(
        [&] { return ::kill(supervisor, 0) != 0 || ::waitpid(supervisor, nullptr, WNOHANG) > 0; }));
    const std::string folder = std::filesystem::path(world.at("run")).parent_path();
    CHECK(!processes_of(folder).empty());
    for (const pid_t pid : processes_of(folder)) // the destination
        ::kill(pid, SIGKILL);
    REQUIRE(LiveVm::eventually([&] { return processes_of(folder).empty(); }));
    world.expect(ExitCode::kDone, {"start", "web"}, "running");
    CHECK(world.status("web").at("vmm").at("pid") != own.pid());
    CHECK(LiveVm::eventually([&] { return own.gone(); }));
}

} // namespace
} // namespace liveupdate::tests
