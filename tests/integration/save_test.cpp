// Guests that are saved and restored, by one build and by the other, and what the
// end of a supervisor, a full disk or a damaged file leaves behind. LIVEUPDATE_TEST_LAZY_MIB: the RAM of the
// guest that gets it while it runs (256), which covers all of it then.
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "handoff/base/fd.hpp"
#include "handoff/save/reader.hpp"
#include "supervisor/binary.hpp"
#include "tests/integration/checks.hpp"
#include "tests/integration/save_checks.hpp"
#include "tests/support/memory_use.hpp"
#include "tests/support/temporary_folder.hpp"

namespace liveupdate::tests {
namespace {

namespace fs = std::filesystem;
using handoff::save::Reader;
using ::tests::guests::read_field;

// Gives RAM that the guest leaves alone something that is to be written.
void fill(LiveVm& vm, size_t from_mib) {
    const auto ram = vm.ram();
    for (size_t at = from_mib << 20; at < ram.size(); at += 4096)
        ram[at] = std::byte{1};
}

bool is_whole(const std::string& path) {
    auto reader = Reader::open(path);
    if (!reader || !(*reader)->load_tables()) return false;
    const auto blocks = (*reader)->header().specs();
    for (size_t i = 0; i < blocks.size(); ++i) {
        if (blocks[i].place != handoff::save::Place::kHere) continue;
        const auto file = handoff::create_sealed_memfd("test", blocks[i].size);
        const auto ram =
            handoff::SharedMapping::map(file->get(), 0, blocks[i].size, handoff::MapMode::kShared);
        if (!ram || !(*reader)->read_block(i, ram->bytes())) return false;
    }
    return true;
}

// Saved while it runs; runs on; and what was saved runs again, and can be updated and saved again.
void check_there_and_back(LiveVmOptions options) {
    const unsigned vcpus = options.vcpus;
    const auto vm = started(std::move(options));
    update_in_turn(*vm, 0, 1); // the epoch is not that of a new guest
    const std::string folder = vm->directory() + "/saved";
    for (int round = 0; round < 2; ++round) {
        const auto report = saved(*vm, folder);
        CHECK(report["guest"] == "running");
        CHECK(report["written_bytes"] > 0);
        CHECK(report["written_bytes"] < report["ram_bytes"]);
        check_sound(*vm, vcpus);
        const size_t left_alone = vm->ram().size() - 1;
        CHECK(vm->ram()[left_alone] == std::byte{0});
        vm->ram()[left_alone] = std::byte{1}; // what comes after the save is not in it
        stop(*vm);
        restored(*vm, folder);
        CHECK(vm->ram()[left_alone] == std::byte{0});
        check_sound(*vm, vcpus);
        update_in_turn(*vm, 0, 2);
        check_sound(*vm, vcpus);
    }
}

TEST_CASE("a guest that watches its clocks and registers does not notice that it was saved and restored") {
    NEEDS_KVM();
    LiveVmOptions options;
    options.vcpus = 2;
    options.cmdline = "kvmclock=1 regs=1 skew_us=1000";
    check_there_and_back(options);
}

TEST_CASE("a guest that counts its timers' interrupts loses none") {
    NEEDS_KVM();
    LiveVmOptions options;
    options.guest = "timer.elf";
    options.vcpus = 2;
    check_there_and_back(options);
}

TEST_CASE("a guest that runs is not touched by a restore in its place, also when its supervisor has died") {
    NEEDS_KVM();
    const auto vm = started(LiveVmOptions{});
    const std::string folder = vm->directory() + "/saved";
    saved(*vm, folder);
    const pid_t vmm = vm->vmm_pid();
    vm->kill_supervisor();
    CHECK_FALSE(vm->start_supervisor({"--restore", folder}).has_value());
    CHECK_FALSE(vm->supervisor_alive());
    REQUIRE(vm->start_supervisor().has_value());
    CHECK(vm->vmm_pid() == vmm);
    check_sound(*vm, 1);
}

TEST_CASE("a guest that checks all its RAM finds it as it was") {
    NEEDS_KVM();
    LiveVmOptions options;
    options.guest = "pattern.elf";
    options.cmdline = "limit_mb=48 stride=256";
    check_there_and_back(options);
}

TEST_CASE("page tables of a guest that was restored are filled behind it") {
    NEEDS_KVM();
    const auto vm = started(LiveVmOptions{});
    fill(*vm, 16);
    const uint64_t filled_kib = (vm->ram().size() >> 10) - (16u << 10);
    const std::string folder = vm->directory() + "/saved";
    saved(*vm, folder, {{"stop", true}});
    REQUIRE(vm->await_supervisor_end() == 0);
    restored(*vm, folder);
    CHECK(LiveVm::eventually([&] { return kib_of(vm->vmm_pid(), "status", "RssShmem") >= filled_kib; }));
    check_sound(*vm, 1);
}

// A guest that writes to all its RAM all the while, and finds every byte as it was.
TEST_CASE("a guest that runs while its RAM is saved is restored as it was when it was stopped") {
    NEEDS_KVM();
    LiveVmOptions options;
    options.guest = "pattern.elf";
    options.vcpus = 2;
    options.cmdline = "limit_mb=48 stride=512";
    const auto vm = started(options);
    const std::string folder = vm->directory() + "/saved";
    for (int round = 0; round < 4; ++round) {
        const auto report = saved(*vm, folder, {{"live", true}});
        CHECK(report["passes"] <= 8);
        check_sound(*vm, 2);
        CHECK(is_whole(file_in(folder)));
        update_in_turn(*vm, 0, 2); // no logging is left behind
        stop(*vm);
        restored(*vm, folder);
        check_sound(*vm, 2);
        const uint64_t counter = read_field(vm->report().vcpus[0].counter);
        CHECK(LiveVm::eventually([&] { return read_field(vm->report().vcpus[0].counter) > counter + 2; },
            std::chrono::seconds(60)));
        check_sound(*vm, 2);
    }
}

// All of its RAM is checked by the guest itself, while it comes and after.
TEST_CASE("a guest whose RAM comes while it runs finds every byte as it was") {
    NEEDS_KVM();
    LiveVmOptions options;
    options.guest = "pattern.elf";
    options.vcpus = 2;
    options.memory_mib = number_from("LIVEUPDATE_TEST_LAZY_MIB", 256);
    const bool covers_all = options.memory_mib != 256;
    options.cmdline = covers_all ? "stride=4096" : "limit_mb=48 stride=512";
    const auto vm = started(options);
    if (!covers_all) fill(*vm, 64); // so that filling takes a while
    const auto passes = [&] { return read_field(vm->report().vcpus[0].pattern.passes); };
    const auto pass_again = [&] {
        const uint64_t before = passes();
        return LiveVm::eventually([&] { return passes() > before + 1; }, std::chrono::minutes(5));
    };
    REQUIRE(pass_again());
    const std::string folder = vm->directory() + "/saved";
    for (int round = 0; round < 3; ++round) {
        saved(*vm, folder, {{"stop", true}});
        CHECK(vm->await_supervisor_end() == 0);
        const auto result = vm->restore(folder, "", {"--lazy"});
        REQUIRE_MESSAGE(result, result.error().message);
        // Nobody but the VMM may touch RAM before all of it has come.
        const auto to_fill = [&] { return vm->status()["restored"].value("ram_to_fill", uint64_t{0}); };
        const auto update = vm->update(turn(0));
        REQUIRE_MESSAGE(update, update.error().message);
        if (update->outcome != supervisor::Outcome::kCompleted)
            CHECK(update->reason.find("have yet to come") != std::string::npos);
        REQUIRE(LiveVm::eventually([&] { return to_fill() == 0; }, std::chrono::seconds(60)));
        check_sound(*vm, 2);
        update_in_turn(*vm, 0, 2);
        check_sound(*vm, 2);
        const auto ram = vm->ram();
        for (size_t at = size_t{64} << 20; !covers_all && at < ram.size(); at += 4096)
            if (ram[at] != std::byte{1}) FAIL("page at ", at, " is not as it was");
        CHECK(pass_again());
        check_sound(*vm, 2);
    }
}

TEST_CASE("a guest whose RAM proves to be damaged while it comes ends, and is never given it") {
    NEEDS_KVM();
    const auto vm = started({});
    fill(*vm, 32);
    const std::string folder = vm->directory() + "/saved";
    saved(*vm, folder, {{"stop", true}});
    CHECK(vm->await_supervisor_end() == 0);
    uint64_t at = 0;
    {
        auto reader = Reader::open(file_in(folder));
        REQUIRE(reader);
        at = (*reader)->header().layout().blocks[0].pages_at + (uint64_t{48} << 20);
    }
    std::fstream file(file_in(folder), std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(at));
    file.put(2).flush();
    static_cast<void>(vm->restore(folder, "", {"--lazy"}));
    CHECK(LiveVm::eventually([&] { return vm->status().value("state", "") == "lost"; }));
    CHECK(vm->status().value("lost_reason", "").find("chunk 48") != std::string::npos);
}

TEST_CASE("a guest that is stopped by its save goes on from there, in either build") {
    NEEDS_KVM();
    LiveVmOptions options;
    options.cmdline = "kvmclock=1 skew_us=1000";
    const auto vm = started(options);
    const std::string folder = vm->directory() + "/saved";
    for (const char* binary : {"liveupdate-vmm-next", "liveupdate-vmm", "liveupdate-vmm"}) {
        const uint64_t counter = read_field(vm->report().vcpus[0].counter);
        CHECK(saved(*vm, folder, {{"stop", true}})["guest"] == "stopped");
        CHECK(vm->await_supervisor_end() == 0);
        restored(*vm, folder, binary);
        CHECK(read_field(vm->report().vcpus[0].counter) >= counter);
        CHECK(vm->build_id() == supervisor::inspect_binary(program(binary))->build_id);
        check_sound(*vm, 1);
    }
}

// Whoever dies where: the guest has one owner or is whole in a file, and a former save stays whole.
void kill_supervisor_at(const std::string& step, const nlohmann::json& kind) {
    CAPTURE(step);
    LiveVmOptions options;
    options.cmdline = "kvmclock=1 skew_us=1000";
    options.backing = "tmpfs";
    const auto vm = started(options);
    const TemporaryFolder shm("/dev/shm");
    const std::string folder = shm.at("saved");
    saved(*vm, folder);
    const std::string before = content_of(file_in(folder));
    nlohmann::json request = kind;
    request["die_at"] = step;
    CHECK_FALSE(vm->call(save_request(folder, request)));
    CHECK(vm->await_supervisor_end() == 128 + SIGKILL);
    CHECK(content_of(file_in(folder)) == before);
    if (step == "taken") {
        // Between the taking of the baton and the renaming: nobody runs it, and it is all there.
        CHECK(LiveVm::eventually([&] { return vm->baton().read().owner != 1; }));
        CHECK(is_whole(new_file_in(folder)));
        // Nothing but its owner may take that away, once the VMM has ended, too.
        REQUIRE(LiveVm::eventually([&] { return processes_of(vm->directory()).empty(); }));
        const auto other = started({});
        const auto refused = other->call(save_request(folder));
        REQUIRE_FALSE(refused);
        CHECK_MESSAGE(
            refused.error().message.find("all there is of it") != std::string::npos, refused.error().message);
        fs::rename(new_file_in(folder), file_in(folder));
        restored(*vm, folder);
        check_sound(*vm, 1);
        return;
    }
    CHECK(LiveVm::eventually([&] { return vm->baton().read().state == handoff::BatonState::kHeld; }));
    CHECK(vm->goes_on());
    REQUIRE(vm->start_supervisor());
    check_sound(*vm, 1);
    saved(*vm, folder);
    CHECK(is_whole(file_in(folder)));
    CHECK_FALSE(fs::exists(new_file_in(folder)));
    check_sound(*vm, 1);
}

TEST_CASE("a supervisor that dies while it saves costs neither the guest nor the former save") {
    NEEDS_KVM();
    for (const char* step : {"described", "stopped", "written", "finished"})
        kill_supervisor_at(step, {{"kind", "file"}});
    for (const char* step : {"stopped", "finished", "taken"})
        kill_supervisor_at(step, {{"kind", "in-place"}});
    kill_supervisor_at("finished", {{"kind", "file"}, {"stop", true}});
}

TEST_CASE("a guest that its save has stopped is in the save, also when the supervisor died then") {
    NEEDS_KVM();
    LiveVmOptions options;
    options.cmdline = "kvmclock=1 skew_us=1000";
    const auto vm = started(options);
    const std::string folder = vm->directory() + "/saved";
    saved(*vm, folder);
    const uint64_t counter = read_field(vm->report().vcpus[0].counter);
    CHECK_FALSE(vm->call(save_request(folder, {{"stop", true}, {"die_at", "taken"}})));
    CHECK(vm->await_supervisor_end() == 128 + SIGKILL);
    REQUIRE(LiveVm::eventually([&] { return processes_of(vm->directory()).empty(); }));
    CHECK_FALSE(fs::exists(new_file_in(folder)));
    restored(*vm, folder);
    CHECK(read_field(vm->report().vcpus[0].counter) >= counter);
    check_sound(*vm, 1);
}

TEST_CASE("a VMM that dies while it is saved is told of, and the former save stays") {
    NEEDS_KVM();
    const auto vm = started({});
    const std::string folder = vm->directory() + "/saved";
    saved(*vm, folder);
    ::kill(vm->vmm_pid(), SIGSTOP); // it will not answer
    const pid_t pid = vm->vmm_pid();
    std::thread killer([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(200));
        ::kill(pid, SIGKILL);
    });
    CHECK_FALSE(vm->call(save_request(folder)));
    killer.join();
    CHECK(LiveVm::eventually([&] { return vm->status().value("state", "") == "lost"; }));
    CHECK(is_whole(file_in(folder)));
}

TEST_CASE("a full disk ends a save with its reason, and the guest runs on") {
    NEEDS_KVM();
    const TemporaryFolder folder;
    const std::string small = folder.at("small");
    fs::create_directory(small);
    if (::mount("liveupdate-test", small.c_str(), "tmpfs", 0, "size=2m") < 0) {
        std::printf("SKIPPED: a small file system cannot be mounted here\n");
        return;
    }
    const auto vm = started({});
    fill(*vm, 32);
    for (const nlohmann::json& how : {nlohmann::json::object(), {{"live", true}}, {{"stop", true}}}) {
        CAPTURE(how.dump());
        const auto failed = vm->call(save_request(small, how));
        REQUIRE_FALSE(failed);
        CHECK_MESSAGE(failed.error().message.find("No space left on device") != std::string::npos,
            failed.error().message);
        CHECK(failed.error().message.find("the guest runs on") != std::string::npos);
        CHECK(fs::is_empty(small));
        check_sound(*vm, 1);
    }
    saved(*vm, vm->directory() + "/saved");
    check_sound(*vm, 1);
    ::umount(small.c_str());
}

TEST_CASE("a save that takes longer than it may leaves the guest running and no file") {
    NEEDS_KVM();
    LiveVmOptions options;
    options.memory_mib = 256;
    const auto vm = started(options);
    fill(*vm, 32);
    const std::string folder = vm->directory() + "/saved";
    // Writing 224 MiB takes longer than a millisecond on any machine, and now and then the stop does already.
    for (int round = 0; round < 20; ++round) {
        const auto failed = vm->call(save_request(folder, {{"timeout_ms", 1}}));
        REQUIRE_FALSE(failed);
        CHECK_FALSE(fs::exists(file_in(folder)));
        CHECK_FALSE(fs::exists(new_file_in(folder)));
        check_sound(*vm, 1);
    }
}

// Of a restore that must fail.
std::string refusal(LiveVm& vm, const std::string& folder) {
    const auto result = vm.restore(folder);
    REQUIRE_FALSE(result);
    CHECK(processes_of(vm.directory()).empty());
    return result.error().message;
}

TEST_CASE("what was damaged, or belongs to another machine, is refused before anything runs") {
    NEEDS_KVM();
    const auto vm = started({});
    const std::string folder = vm->directory() + "/saved";
    saved(*vm, folder, {{"stop", true}});
    CHECK(vm->await_supervisor_end() == 0);
    const std::string whole = content_of(file_in(folder));
    const auto write = [&](const std::string& bytes) {
        std::ofstream(file_in(folder), std::ios::binary | std::ios::trunc) << bytes;
    };
    const auto with_flipped = [&](uint64_t at) {
        std::string bytes = whole;
        bytes[at] = static_cast<char>(bytes[at] ^ 4);
        return bytes;
    };
    auto reader = Reader::open(file_in(folder));
    REQUIRE(reader);
    REQUIRE((*reader)->load_tables());
    const auto layout = (*reader)->header().layout();
    uint64_t page = 0;
    while (!(*reader)->written(0).test(page))
        ++page;
    write(with_flipped(layout.blocks[0].pages_at + page * 4096 + 17));
    CHECK(refusal(*vm, folder).find("RAM block ram0, chunk 0") != std::string::npos);
    write(with_flipped(layout.state_at + 100));
    CHECK(refusal(*vm, folder).find("the state") != std::string::npos);
    write(whole.substr(0, whole.size() - 4096));
    CHECK(refusal(*vm, folder).find("cut") != std::string::npos);
    write(whole);
    restored(*vm, folder);
    check_sound(*vm, 1);
    stop(*vm);
    // Another machine in the VM file.
    const std::string config = vm->directory() + "/config/vm.toml";
    LiveVmOptions other;
    other.memory_mib = 128;
    const auto bigger = started(other);
    saved(*bigger, folder, {{"stop", true}});
    CHECK(refusal(*vm, folder).find("RAM") != std::string::npos);
}

} // namespace
} // namespace liveupdate::tests
