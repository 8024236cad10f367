// Guests of QEMU that are saved and restored, and what the end of a supervisor or of a QEMU, a damaged file
// or another machine leaves behind.
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "handoff/base/fd.hpp"
#include "handoff/save/reader.hpp"
#include "tests/integration/qemu_checks.hpp"
#include "tests/integration/save_checks.hpp"
#include "tests/support/nbd_server.hpp"
#include "tests/support/temporary_folder.hpp"

namespace liveupdate::tests {
namespace {

namespace fs = std::filesystem;
using handoff::save::Reader;
using supervisor::Outcome;
using ::tests::guests::read_field;

std::string why_not_saved(LiveVm& vm, const std::string& directory, const nlohmann::json& more = {}) {
    const auto report = vm.call(save_request(directory, more));
    REQUIRE_FALSE(report.has_value());
    return report.error().message;
}

// With the VM file as it is in the folder.
std::string why_not_restored(LiveVm& vm, const std::string& directory) {
    const auto result = vm.start_supervisor({"--restore", directory});
    REQUIRE_FALSE(result.has_value());
    CHECK_FALSE(vm.supervisor_alive());
    return result.error().message;
}

void updated(LiveVm& vm, const std::string& binary) {
    const auto record = vm.update(binary);
    REQUIRE_MESSAGE(record, record.error().message);
    REQUIRE_MESSAGE(record->outcome == Outcome::kCompleted, record->reason);
}

void change_byte(const std::string& path, uint64_t at) {
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekg(static_cast<std::streamoff>(at));
    const int was = file.get();
    file.seekp(static_cast<std::streamoff>(at));
    file.put(static_cast<char>(was ^ 1)).flush();
    REQUIRE(file.good());
}

void change_vm_file(const LiveVm& vm, const std::string& from, const std::string& to) {
    const std::string path = vm.directory() + "/config/vm.toml";
    std::string text = content_of(path);
    const size_t at = text.find(from);
    REQUIRE(at != std::string::npos);
    text.replace(at, from.size(), to);
    std::ofstream(path) << text;
}

LiveVmOptions on_microvm(LiveVmOptions options) {
    const size_t at = options.qemu_toml.find("q35");
    options.qemu_toml.replace(at, 3, "microvm,pit=on,pic=on,rtc=off");
    return options;
}

// Saved while it runs; runs on; what was saved runs again, and can be updated and saved again.
void check_there_and_back(LiveVmOptions options) {
    const unsigned vcpus = options.vcpus;
    const auto vm = started(std::move(options));
    const OtherQemu other;
    updated(*vm, other.path()); // the epoch is not that of a new guest
    const std::string folder = vm->directory() + "/saved";
    for (int round = 0; round < 2; ++round) {
        CAPTURE(round);
        const pid_t qemu = vm->vmm_pid();
        const uint64_t epoch = vm->baton().read().epoch;
        const auto report = saved(*vm, folder);
        CHECK(report["guest"] == "running");
        CHECK(report["written_bytes"] > 0);
        CHECK(report["written_bytes"] < report["ram_bytes"]);
        CHECK(report["stood_still_us"] > 0);
        CHECK(vm->vmm_pid() == qemu);
        check_sound(*vm, vcpus);
        const size_t left_alone = vm->ram().size() - 1;
        CHECK(vm->ram()[left_alone] == std::byte{0});
        vm->ram()[left_alone] = std::byte{1}; // what comes after the save is not in it
        stop(*vm);
        restored(*vm, folder);
        CHECK(vm->ram()[left_alone] == std::byte{0});
        CHECK(vm->baton().read().epoch > epoch);
        check_sound(*vm, vcpus);
        updated(*vm, other.path());
        check_sound(*vm, vcpus);
    }
    check_runs(*vm);
}

TEST_CASE("a guest of QEMU that watches its clocks does not see them go back when it is saved and restored") {
    NEEDS_QEMU();
    auto options = qemu_guest();
    options.vcpus = 2;
    options.cmdline = "kvmclock=1 skew_us=1000";
    SUBCASE("q35") {}
    SUBCASE("microvm") {
        options = on_microvm(options);
    }
    check_there_and_back(options);
}

TEST_CASE("a guest of QEMU that counts its timers' interrupts loses none by a save and a restore") {
    NEEDS_QEMU();
    auto options = qemu_guest();
    options.guest = "timer.elf";
    options.cmdline = "";
    SUBCASE("q35") {}
    SUBCASE("microvm") {
        options = on_microvm(options);
    }
    check_there_and_back(options);
}

TEST_CASE("a guest of QEMU that checks all its RAM finds it as it was") {
    NEEDS_QEMU();
    auto options = qemu_guest();
    options.guest = "pattern.elf";
    options.cmdline = "limit_mb=48 stride=256";
    const auto vm = started(options);
    const std::string folder = vm->directory() + "/saved";
    const auto passes = [&] { return read_field(vm->report().vcpus[0].pattern.passes); };
    REQUIRE(LiveVm::eventually([&] { return passes() >= 1; }, std::chrono::seconds(60)));
    for (int round = 0; round < 2; ++round) {
        saved(*vm, folder, {{"stop", true}});
        CHECK(vm->await_supervisor_end() == 0);
        restored(*vm, folder);
        const uint64_t now = passes();
        CHECK(LiveVm::eventually([&] { return passes() > now + 1; }, std::chrono::seconds(120)));
        check_runs(*vm);
    }
}

TEST_CASE("a guest of QEMU is saved in place, its RAM where it is, and restored from there once") {
    NEEDS_QEMU();
    auto options = qemu_guest();
    std::string home = "/dev/shm";
    SUBCASE("on tmpfs") {
        options.backing = "tmpfs";
    }
    SUBCASE("on a disk") {
        options.backing = "file";
        home = folder_on_disk();
        if (home.empty()) {
            std::printf("SKIPPED: all that tests may write to is on tmpfs\n");
            return;
        }
    }
    const TemporaryFolder there(home);
    options.backing_directory = fs::path(there.at("ram0")).parent_path();
    const auto vm = started(options);
    const std::string folder = there.at("saved");
    CHECK_FALSE(vm->call(save_request(folder, {{"die_at", "finished"}, {"kind", "in-place"}})).has_value());
    CHECK(vm->await_supervisor_end() == 128 + SIGKILL);
    const auto again = vm->start_supervisor();
    REQUIRE_MESSAGE(again, again.error().message);
    REQUIRE(vm->map_guest());
    for (int round = 0; round < 2; ++round) {
        CAPTURE(round);
        vm->ram()[vm->ram().size() - 1] = std::byte{7};
        const auto report = saved(*vm, folder, {{"kind", "in-place"}});
        CHECK(report["guest"] == "stopped");
        CHECK(report["written_bytes"] == 0);
        CHECK(vm->await_supervisor_end() == 0);
        CHECK(fs::file_size(folder + "/ram0") == vm->ram().size());
        restored(*vm, folder);
        CHECK(vm->ram()[vm->ram().size() - 1] == std::byte{7});
        CHECK_FALSE(fs::exists(file_in(folder))); // it has gone on
        check_runs(*vm);
        updated(*vm, kQemuPath);
        check_runs(*vm);
    }
}

TEST_CASE("a guest of QEMU whose RAM has no file to stay in is not saved in place, and runs on") {
    NEEDS_QEMU();
    const auto vm = started(qemu_guest());
    const std::string folder = vm->directory() + "/saved";
    const std::string why = why_not_saved(*vm, folder, {{"kind", "in-place"}});
    CHECK_MESSAGE(why.find("anonymous memory") != std::string::npos, why);
    CHECK(fs::is_empty(folder));
    check_runs(*vm);
}

TEST_CASE("what is damaged is refused, and no QEMU is left behind") {
    NEEDS_QEMU();
    const auto vm = started(qemu_guest());
    const std::string folder = vm->directory() + "/saved", file = file_in(folder);
    saved(*vm, folder, {{"stop", true}});
    CHECK(vm->await_supervisor_end() == 0);
    const auto reader = Reader::open(file);
    REQUIRE_MESSAGE(reader, reader.error().message);
    REQUIRE((*reader)->load_tables());
    uint64_t written = 0;
    while (!(*reader)->written(0).test(written))
        ++written;
    const auto layout = (*reader)->header().layout();
    struct Damage {
        uint64_t at;
        const char* words;
    };
    for (const Damage& damage : {Damage{200, "checksum"}, Damage{layout.state_at + 100, "checksum"},
             Damage{layout.blocks[0].pages_at + written * 4096, "is damaged: its checksum is wrong"}}) {
        CAPTURE(damage.at);
        change_byte(file, damage.at);
        const std::string why = why_not_restored(*vm, folder);
        CHECK_MESSAGE(why.find(damage.words) != std::string::npos, why);
        change_byte(file, damage.at);
    }
    CHECK(processes_of(vm->directory()).empty());
    restored(*vm, folder); // it was that byte alone
    check_runs(*vm);
}

TEST_CASE("another machine than the saved one is refused in words, those of QEMU where it has some") {
    NEEDS_QEMU();
    auto options = qemu_guest();
    options.extra_toml += "[[net]]\ntype = \"user\"\n";
    const auto vm = started(options);
    const std::string folder = vm->directory() + "/saved", vm_file = vm->directory() + "/config/vm.toml";
    saved(*vm, folder, {{"stop", true}});
    CHECK(vm->await_supervisor_end() == 0);
    const std::string former = content_of(vm_file), before = content_of(file_in(folder));
    const auto machine = (*Reader::open(file_in(folder)))->guest().qemu().machine();
    const OtherQemu without_machine, without_device;
    without_machine.forget(machine);
    without_device.forget("virtio-rng-pci");
    struct Change {
        std::string from, to, words;
    };
    const std::string binary = std::string("binary = \"") + kQemuPath + "\"";
    for (const Change& change : {Change{"machine = \"q35\"", "machine = \"q35,smm=off\"", "-machine was"},
             Change{"[machine]", "[machine]\nrng = false", "the machine of the VM file has no /machine/"},
             Change{"[[net]]\ntype = \"user\"\n", "", "the machine of the VM file has no /machine/"},
             Change{"vcpus = 1", "vcpus = 2", "-smp was '1' and is '2'"},
             Change{"size = \"64M\"", "size = \"128M\"", "describes other RAM"},
             Change{"[[net]]", "[[net]]\ntype = \"user\"\n[[net]]", "which the saved guest has not"},
             Change{binary, "binary = \"" + without_machine.path() + "\"", "unsupported machine type"},
             Change{binary, "binary = \"" + without_device.path() + "\"",
                 "'virtio-rng-pci' is not a valid device model name"}}) {
        CAPTURE(change.to);
        change_vm_file(*vm, change.from, change.to);
        const std::string why = why_not_restored(*vm, folder);
        CHECK_MESSAGE(why.find(change.words) != std::string::npos, why);
        std::ofstream(vm_file) << former;
    }
    CHECK(processes_of(vm->directory()).empty());
    CHECK(content_of(file_in(folder)) == before);
    restored(*vm, folder);
    check_runs(*vm);
}

TEST_CASE("a supervisor that dies in a save leaves the former save whole, and its guest to the next one") {
    NEEDS_QEMU();
    const auto vm = started(qemu_guest());
    const std::string folder = vm->directory() + "/saved";
    saved(*vm, folder);
    const std::string former = content_of(file_in(folder));
    for (const char* step : {"described", "stopped", "written", "finished"}) {
        CAPTURE(step);
        const pid_t qemu = vm->vmm_pid();
        CHECK_FALSE(vm->call(save_request(folder, {{"die_at", step}})).has_value());
        CHECK(vm->await_supervisor_end() == 128 + SIGKILL);
        CHECK(content_of(file_in(folder)) == former);
        const auto again = vm->start_supervisor();
        REQUIRE_MESSAGE(again, again.error().message);
        REQUIRE(vm->map_guest());
        CHECK(vm->vmm_pid() == qemu);
        check_runs(*vm);
    }
    saved(*vm, folder); // over what has been left
    CHECK(content_of(file_in(folder)) != former);
    updated(*vm, kQemuPath);
    check_runs(*vm);
}

TEST_CASE("a guest that was taken for its save is whole in the file when the supervisor dies") {
    NEEDS_QEMU();
    const auto vm = started(qemu_guest());
    const std::string folder = vm->directory() + "/saved";
    CHECK_FALSE(vm->call(save_request(folder, {{"die_at", "taken"}, {"stop", true}})).has_value());
    CHECK(vm->await_supervisor_end() == 128 + SIGKILL);
    // A successor does not let the guest that is in the file run here, too.
    CHECK_FALSE(fs::exists(file_in(folder) + ".new"));
    restored(*vm, folder);
    check_runs(*vm);
}

TEST_CASE("a guest that was taken for its save in place is not taken away by another save") {
    NEEDS_QEMU();
    const TemporaryFolder shm("/dev/shm");
    auto options = qemu_guest();
    options.backing = "tmpfs";
    options.backing_directory = fs::path(shm.at("ram0")).parent_path();
    const auto vm = started(options);
    const std::string folder = shm.at("saved");
    CHECK_FALSE(vm->call(save_request(folder, {{"die_at", "taken"}, {"kind", "in-place"}})).has_value());
    CHECK(vm->await_supervisor_end() == 128 + SIGKILL);
    CHECK_FALSE(fs::exists(file_in(folder)));
    CHECK_FALSE(processes_of(vm->directory()).empty()); // its QEMU has the RAM still
    const auto other = started(qemu_guest());
    const std::string why = why_not_saved(*other, folder, {});
    CHECK_MESSAGE(why.find("all there is of") != std::string::npos, why);
    check_runs(*other);
    fs::rename(file_in(folder) + ".new", file_in(folder));
    restored(*vm, folder);
    check_runs(*vm);
}

TEST_CASE("a guest of QEMU is restored from an NBD server at once, and in no other way, in words") {
    NEEDS_QEMU();
    if (const std::string why = NbdServer::why_none(); !why.empty()) {
        std::printf("SKIPPED: %s\n", why.c_str());
        return;
    }
    const TemporaryFolder shm("/dev/shm");
    auto options = qemu_guest();
    options.backing = "tmpfs";
    options.backing_directory = fs::path(shm.at("ram0")).parent_path();
    const auto vm = started(options);
    const std::string folder = vm->directory() + "/saved", in_place = shm.at("saved");
    saved(*vm, folder, {{"stop", true}});
    CHECK(vm->await_supervisor_end() == 0);
    const NbdServer server(vm->directory() + "/nbd.sock", "dir=" + folder);
    REQUIRE(server.up());
    const auto lazily = vm->start_supervisor({"--restore", server.uri(), "--lazy"});
    REQUIRE_FALSE(lazily.has_value());
    CHECK_MESSAGE(lazily.error().message.find("without --lazy") != std::string::npos, lazily.error().message);
    restored(*vm, server.uri());
    check_runs(*vm);
    updated(*vm, kQemuPath);
    check_runs(*vm);

    saved(*vm, in_place, {{"kind", "in-place"}});
    CHECK(vm->await_supervisor_end() == 0);
    const NbdServer other(vm->directory() + "/nbd2.sock", "dir=" + in_place);
    REQUIRE(other.up());
    const std::string why = why_not_restored(*vm, other.uri());
    CHECK_MESSAGE(why.find("which is not in the export") != std::string::npos, why);
    restored(*vm, in_place);
    check_runs(*vm);
}

TEST_CASE("a QEMU that dies in a save leaves the former save whole") {
    NEEDS_QEMU();
    auto options = qemu_guest();
    options.memory_mib = 256;
    const auto vm = started(options);
    const std::string folder = vm->directory() + "/saved";
    saved(*vm, folder);
    const std::string former = content_of(file_in(folder));
    const pid_t qemu = vm->vmm_pid();
    std::thread killer([&] {
        LiveVm::eventually([&] { return fs::exists(file_in(folder) + ".new"); });
        ::kill(qemu, SIGKILL);
    });
    const auto report = vm->call(save_request(folder));
    killer.join();
    if (!report) {
        CHECK(content_of(file_in(folder)) == former);
        CHECK_FALSE(fs::exists(file_in(folder) + ".new"));
    }
    CHECK(LiveVm::eventually([&] { return vm->status().value("state", "") == "lost"; }));
    stop(*vm);
    restored(*vm, folder);
    check_runs(*vm);
}

TEST_CASE("a save that takes longer than the guest may stand still is given up, and the guest runs on") {
    NEEDS_QEMU();
    const auto vm = started(qemu_guest());
    const std::string folder = vm->directory() + "/saved";
    const std::string why = why_not_saved(*vm, folder, {{"timeout_ms", 1}});
    CHECK_MESSAGE(why.find("give more time with --timeout") != std::string::npos, why);
    CHECK_MESSAGE(why.find("the guest runs on") != std::string::npos, why);
    CHECK(fs::is_empty(folder));
    check_runs(*vm);
    saved(*vm, folder);
    updated(*vm, kQemuPath);
    check_runs(*vm);
}

TEST_CASE("what QEMU cannot do is refused in words before the guest is touched") {
    NEEDS_QEMU();
    const TemporaryFolder folder;
    auto options = qemu_guest();
    std::string words;
    nlohmann::json more;
    SUBCASE("a save while it runs") {
        more = {{"live", true}};
        words = "save it without --live";
    }
    SUBCASE("RAM that is private to its QEMU") {
        options.backing = "private";
        words = "has no migration capability 'mapped-ram'";
    }
    SUBCASE("RAM that is private to its QEMU, in place") {
        options.backing = "private";
        more = {{"kind", "in-place"}};
        words = "a save in place needs";
    }
    const auto vm = started(options);
    const pid_t qemu = vm->vmm_pid();
    const std::string why = why_not_saved(*vm, folder.at("saved"), more);
    CHECK_MESSAGE(why.find(words) != std::string::npos, why);
    CHECK(vm->vmm_pid() == qemu);
    check_sound(*vm, 1);
}

void change_vmm(const LiveVm& vm, const std::string& from, const std::string& to) {
    change_vm_file(vm, "binary = \"" + from + "\"", "binary = \"" + to + "\"");
}

TEST_CASE("a guest that one QEMU has saved goes on in a newer one, and in none that has not its machine") {
    NEEDS_NEWER_QEMU();
    auto options = qemu_guest();
    options.cmdline = "kvmclock=1 skew_us=1000";
    const auto vm = started(options);
    const std::string folder = vm->directory() + "/saved";
    saved(*vm, folder, {{"stop", true}});
    CHECK(vm->await_supervisor_end() == 0);
    const auto there = vm->restore(folder, newer_qemu());
    REQUIRE_MESSAGE(there, there.error().message);
    check_runs(*vm);
    CHECK(vm->status()["vmm"].value("binary", "") == newer_qemu());
    updated(*vm, kQemuPath);
    check_runs(*vm);

    options.vmm = newer_qemu();
    const auto newer = started(options);
    saved(*newer, newer->directory() + "/saved", {{"stop", true}});
    CHECK(newer->await_supervisor_end() == 0);
    change_vmm(*newer, newer_qemu(), kQemuPath);
    const std::string why = why_not_restored(*newer, newer->directory() + "/saved");
    CHECK_MESSAGE(why.find("unsupported machine type") != std::string::npos, why);
}

size_t mapped_files(const std::string& folder) {
    size_t count = 0;
    for (const auto& entry : fs::directory_iterator(folder))
        count += entry.path().filename().string().starts_with("ram0-") ? 1 : 0;
    return count;
}

TEST_CASE("private RAM is saved by a QEMU that has mapped-ram, while the guest stands or runs") {
    NEEDS_NEWER_QEMU();
    auto options = qemu_guest();
    options.vmm = newer_qemu();
    options.guest = "pattern.elf";
    options.cmdline = "limit_mb=32 stride=512";
    options.backing = "private";
    const auto vm = started(options);
    const std::string folder = vm->directory() + "/saved";
    const auto passes = [&] { return read_field(vm->report().vcpus[0].pattern.passes); };
    REQUIRE(LiveVm::eventually([&] { return passes() >= 1; }, std::chrono::seconds(60)));
    for (const bool live : {false, true}) {
        CAPTURE(live);
        const pid_t qemu = vm->vmm_pid();
        const auto report = saved(*vm, folder, {{"live", live}});
        CHECK(report["written_bytes"] > 0);
        CHECK(vm->vmm_pid() == qemu);
        check_sound(*vm, 1);
        CHECK(mapped_files(folder) == 1);
        updated(*vm, newer_qemu()); // nothing is left behind that would be in its way
        stop(*vm);
        const auto back = vm->restore(folder, newer_qemu());
        REQUIRE_MESSAGE(back, back.error().message);
        const uint64_t now = passes();
        CHECK(LiveVm::eventually([&] { return passes() > now + 1; }, std::chrono::seconds(120)));
        check_sound(*vm, 1);
        updated(*vm, newer_qemu());
        check_sound(*vm, 1);
    }
    const std::string why = why_not_saved(*vm, folder, {{"timeout_ms", 1}});
    CHECK_MESSAGE(why.find("the guest runs on") != std::string::npos, why);
    CHECK(mapped_files(folder) == 1);
    for (const char* step : {"stopped", "finished"}) {
        CHECK_FALSE(vm->call(save_request(folder, {{"die_at", step}})).has_value());
        CHECK(vm->await_supervisor_end() == 128 + SIGKILL);
        const auto again = vm->start_supervisor();
        REQUIRE_MESSAGE(again, again.error().message);
        REQUIRE(vm->map_guest());
        check_sound(*vm, 1);
        updated(*vm, newer_qemu());
    }
    saved(*vm, folder, {{"stop", true}});
    CHECK(vm->await_supervisor_end() == 0);
    REQUIRE(mapped_files(folder) == 1);
    for (const auto& entry : fs::directory_iterator(folder))
        if (entry.path().filename() != "guest.save") change_byte(entry.path(), fs::file_size(entry) / 2);
    const std::string damaged = why_not_restored(*vm, folder);
    CHECK_MESSAGE(damaged.find("is damaged: its checksum is wrong") != std::string::npos, damaged);
}

} // namespace
} // namespace liveupdate::tests
