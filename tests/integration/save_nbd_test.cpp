// Guests that are restored from an NBD server: at once and while they run, by a unix socket and by TCP, and
// what a server that dies, falls silent or has something else comes to.
#include <signal.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "handoff/base/fd.hpp"
#include "handoff/save/reader.hpp"
#include "tests/integration/checks.hpp"
#include "tests/integration/world.hpp"
#include "tests/support/nbd_server.hpp"
#include "tests/support/temporary_folder.hpp"

namespace liveupdate::tests {
namespace {

using handoff::save::Reader;
using supervisor::ExitCode;
using ::tests::guests::read_field;

constexpr unsigned kMemoryMib = 256;
constexpr unsigned kGuestMib = 48; // what the guest itself writes and checks, all the while

#define NEEDS_KVM_AND_NBDKIT()                                                                               \
    NEEDS_KVM()                                                                                              \
    if (const std::string why = NbdServer::why_none(); !why.empty()) {                                       \
        std::printf("SKIPPED: %s\n", why.c_str());                                                           \
        return;                                                                                              \
    }

// A guest that has been saved and stopped, and what it is restored from.
class SavedVm {
public:
    SavedVm() {
        LiveVmOptions options;
        options.guest = "pattern.elf";
        options.vcpus = 2;
        options.memory_mib = kMemoryMib;
        options.cmdline = "limit_mb=" + std::to_string(kGuestMib) + " stride=512";
        vm_ = started(options);
        const auto ram = vm_->ram();
        for (size_t at = size_t{64} << 20; at < ram.size(); at += 4096)
            ram[at] = std::byte{1};
        save();
    }
    void save() {
        const auto report =
            vm_->call({{"command", "save"}, {"directory", folder()}, {"kind", "file"}, {"stop", true}});
        REQUIRE_MESSAGE(report, report.error().message);
        REQUIRE(vm_->await_supervisor_end() == 0);
    }

    LiveVm& vm() { return *vm_; }
    std::string folder() const { return vm_->directory() + "/saved"; }
    std::string file() const { return folder() + "/guest.save"; }
    std::string socket() const { return vm_->directory() + "/nbd.sock"; }

    Result<void> restore(const std::string& uri, const std::vector<std::string>& more = {}) {
        return vm_->restore(uri, "", more);
    }
    nlohmann::json to_come() { return vm_->status().value("ram_to_come", nlohmann::json::object()); }
    uint64_t bytes_to_come() { return to_come().value("bytes", uint64_t{0}); }
    std::string trouble() { return to_come().value("trouble", ""); }
    bool all_has_come() {
        return LiveVm::eventually([&] { return bytes_to_come() == 0; }, std::chrono::seconds(60));
    }
    // All of RAM is what it was, and the guest goes over all of its own once more. Not before all has come:
    // to look at RAM from outside is to touch it.
    void check_whole() {
        REQUIRE(vm_->status().value("state", "") == "running");
        check_sound(*vm_, 2);
        const auto ram = vm_->ram();
        for (size_t at = size_t{64} << 20; at < ram.size(); at += 4096)
            if (ram[at] != std::byte{1}) FAIL("page at ", at, " is not as it was");
        const uint64_t counter = read_field(vm_->report().vcpus[0].counter);
        CHECK(LiveVm::eventually([&] { return read_field(vm_->report().vcpus[0].counter) > counter + 2; },
            std::chrono::seconds(60)));
        check_sound(*vm_, 2);
    }

private:
    std::unique_ptr<LiveVm> vm_;
};

// About 16 MiB a second, so that something happens while RAM comes.
std::vector<std::string> slowly() {
    return {"--filter=rate", "rate=128M"};
}

void restored(SavedVm& saved, const std::string& uri, const std::vector<std::string>& more = {}) {
    const auto result = saved.restore(uri, more);
    REQUIRE_MESSAGE(result, result.error().message);
}

TEST_CASE("a guest that is read from an NBD server, by a unix socket and by TCP, is as it was") {
    NEEDS_KVM_AND_NBDKIT();
    SavedVm saved;
    for (const std::string& socket : {saved.socket(), std::string()}) {
        const NbdServer server(socket, "dir=" + saved.folder());
        REQUIRE(server.up());
        restored(saved, server.uri());
        CHECK(saved.vm().status()["restored"].contains("ram_us"));
        saved.check_whole();
        update_in_turn(saved.vm(), 0, 2);
        saved.check_whole();
        saved.save();
    }
}

TEST_CASE("a guest whose RAM comes from an NBD server while it runs finds every byte as it was") {
    NEEDS_KVM_AND_NBDKIT();
    SavedVm saved;
    for (const std::string& socket : {saved.socket(), std::string()}) {
        const NbdServer server(socket, "dir=" + saved.folder(), slowly());
        REQUIRE(server.up());
        restored(saved, server.uri(), {"--lazy"});
        CHECK(saved.bytes_to_come() > 0);
        const auto update = saved.vm().update(turn(0)); // would find zeros
        REQUIRE_MESSAGE(update, update.error().message);
        CHECK(update->outcome != supervisor::Outcome::kCompleted);
        CHECK_MESSAGE(update->reason.find("have yet to come") != std::string::npos, update->reason);
        REQUIRE(saved.all_has_come());
        saved.check_whole();
        update_in_turn(saved.vm(), 0, 2);
        saved.check_whole();
        saved.save();
    }
}

// As qemu-nbd is without -e: who has been given a connection keeps the next one waiting, or out.
TEST_CASE("RAM comes while the guest runs from a server of one client at a time, too") {
    NEEDS_KVM_AND_NBDKIT();
    SavedVm saved;
    const NbdServer server(saved.socket(), saved.file(),
        {"--filter=multi-conn", "--filter=limit", "multi-conn-mode=disable", "limit=1"});
    REQUIRE(server.up());
    restored(saved, server.uri(), {"--lazy"});
    REQUIRE(saved.all_has_come());
    saved.check_whole();
}

TEST_CASE("a server that dies while RAM comes makes the guest wait, and one that comes back lets it go on") {
    NEEDS_KVM_AND_NBDKIT();
    SavedVm saved;
    NbdServer server(saved.socket(), saved.file(), slowly());
    REQUIRE(server.up());
    restored(saved, server.uri(), {"--lazy"});
    REQUIRE(LiveVm::eventually([&] { return saved.bytes_to_come() < uint64_t{kMemoryMib - 16} << 20; }));
    server.kill();
    REQUIRE(LiveVm::eventually([&] { return !saved.trouble().empty(); }, std::chrono::seconds(60)));
    CHECK(saved.trouble().find("nothing has come for") != std::string::npos);
    const uint64_t left = saved.bytes_to_come();
    CHECK(left > 0);
    CHECK(saved.vm().status().value("state", "") == "running");
    // Neither a supervisor that dies nor one that follows is needed for RAM to come.
    saved.vm().kill_supervisor();
    REQUIRE(saved.vm().start_supervisor());
    CHECK(saved.bytes_to_come() == left);
    CHECK(
        LiveVm::eventually([&] { return saved.trouble().find("Connection refused") != std::string::npos; }));
    const NbdServer again(saved.socket(), saved.file());
    REQUIRE(again.up());
    REQUIRE(saved.all_has_come());
    CHECK(saved.trouble().empty());
    saved.check_whole();
    update_in_turn(saved.vm(), 0, 2);
    saved.check_whole();
}

TEST_CASE("a server that falls silent is waited for, and asked again") {
    NEEDS_KVM_AND_NBDKIT();
    SavedVm saved;
    const NbdServer server("", saved.file(), slowly());
    REQUIRE(server.up());
    restored(saved, server.uri(), {"--lazy", "--ram-timeout", "2m"});
    server.signal(SIGSTOP);
    REQUIRE(LiveVm::eventually([&] { return !saved.trouble().empty(); }, std::chrono::seconds(60)));
    CHECK(saved.trouble().find("has said nothing for 15 s") != std::string::npos);
    server.signal(SIGCONT);
    REQUIRE(saved.all_has_come());
    saved.check_whole();
}

TEST_CASE("a guest that has waited for its RAM for too long is given up, with the reason") {
    NEEDS_KVM_AND_NBDKIT();
    SavedVm saved;
    NbdServer server(saved.socket(), saved.file(), slowly());
    REQUIRE(server.up());
    restored(saved, server.uri(), {"--lazy", "--ram-timeout", "2s"});
    server.kill();
    // What the VMM says of its own accord is heard, too, while it is always being asked something.
    std::atomic<bool> over{false};
    std::vector<std::jthread> askers(3);
    for (std::jthread& asker : askers)
        asker = std::jthread([&] {
            while (!over)
                static_cast<void>(saved.vm().status());
        });
    const auto state = [&] { return saved.vm().status().value("state", ""); };
    const bool lost = LiveVm::eventually([&] { return state() == "lost"; }, std::chrono::seconds(60));
    over = true;
    REQUIRE_MESSAGE(lost, saved.vm().status().dump());
    const std::string why = saved.vm().status().value("lost_reason", "");
    CHECK_MESSAGE(why.find("the guest has waited for ") != std::string::npos, why);
    CHECK_MESSAGE(why.find(saved.socket()) != std::string::npos, why);
    CHECK_MESSAGE(why.find("Connection refused") != std::string::npos, why);
}

TEST_CASE("what an NBD server has and is damaged is refused before anything runs, or ends the guest that "
          "waits for it") {
    NEEDS_KVM_AND_NBDKIT();
    SavedVm saved;
    const NbdServer server(saved.socket(), "dir=" + saved.folder());
    REQUIRE(server.up());
    uint64_t state_at = 0, page_at = 0;
    {
        const auto reader = Reader::open(saved.file());
        REQUIRE(reader);
        state_at = (*reader)->header().layout().state_at;
        page_at = (*reader)->header().layout().blocks[0].pages_at + (uint64_t{200} << 20);
    }
    std::fstream file(saved.file(), std::ios::binary | std::ios::in | std::ios::out);
    const auto flip = [&](uint64_t at) {
        file.seekg(static_cast<std::streamoff>(at));
        const int byte = file.get();
        file.seekp(static_cast<std::streamoff>(at));
        file.put(static_cast<char>(byte ^ 1)).flush();
    };
    const auto refused = [&](const std::string& word, const std::vector<std::string>& more = {}) {
        const auto result = saved.restore(server.uri(), more);
        REQUIRE_FALSE(result);
        CHECK_MESSAGE(result.error().message.find(word) != std::string::npos, result.error().message);
        CHECK(processes_of(saved.vm().directory()).empty());
    };
    for (const std::vector<std::string>& more : {std::vector<std::string>{}, {"--lazy"}}) {
        flip(state_at + 10);
        refused("the state", more);
        flip(state_at + 10);
    }
    flip(page_at);
    refused("RAM block ram0, chunk 200");
    const auto result = saved.restore(server.uri(), {"--lazy"});
    INFO((result ? "" : result.error().message));
    REQUIRE(LiveVm::eventually([&] { return saved.vm().status().value("state", "") == "lost"; }));
    const std::string why = saved.vm().status().value("lost_reason", "");
    CHECK_MESSAGE(why.find("chunk 200") != std::string::npos, why);
}

TEST_CASE("the command says what cannot be restored from an NBD server, and why") {
    NEEDS_KVM_AND_NBDKIT();
    const World world;
    world.write_vm("web1", program("liveupdate-vmm"));
    world.expect(ExitCode::kDone, {"start", "web1"});
    world.expect(ExitCode::kDone, {"save", "--stop", "web1", world.at("saved")});
    NbdServer server(world.at("nbd.sock"), "dir=" + world.at("saved"));
    REQUIRE(server.up());
    const std::string uri = server.uri();
    world.expect(
        ExitCode::kUsage, {"restore", "--mapped", uri, "web1"}, "RAM cannot be mapped from an NBD server");
    world.expect(ExitCode::kUsage, {"restore", "nbds://host/guest.save", "web1"}, "TLS is not supported");
    world.expect(ExitCode::kUsage, {"restore", "--lazy", "--ram-timeout", "0", uri, "web1"}, "--ram-timeout");
    world.expect(ExitCode::kUsage, {"restore", "--lazy", "--ram-timeout", "1m", world.at("saved"), "web1"},
        "--ram-timeout is for a save that an NBD server has");
    world.expect(ExitCode::kUnreachable, {"restore", server.uri("other"), "web1"}, "no export named 'other'");
    // By another name it needs no VM file, and takes the saved one.
    world.expect(ExitCode::kDone, {"restore", "--lazy", "--ram-timeout", "1m", uri, "web2"}, "web2: running");
    REQUIRE(LiveVm::eventually([&] { return !world.status("web2").contains("ram_to_come"); }));
    world.expect(ExitCode::kDone, {"stop", "web2"});
    server.kill();
    world.expect(ExitCode::kUnreachable, {"restore", uri, "web1"}, "Connection refused");
    // What a restore in place has left that ended in the handing over is told of.
    std::filesystem::rename(world.at("saved/guest.save"), world.at("saved/guest.save.used"));
    world.expect(ExitCode::kUnreachable, {"restore", world.at("saved"), "web1"}, "guest.save.used is there");
}

} // namespace
} // namespace liveupdate::tests
