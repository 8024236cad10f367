// Templates, and guests that are cloned from them, by the command as people use it.
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "handoff/base/fd.hpp"
#include "handoff/save/reader.hpp"
#include "tests/guests/report.hpp"
#include "tests/integration/world.hpp"
#include "tests/support/net_namespace.hpp"
#include "tests/support/origin_ram.hpp"
#include "tests/support/temporary_folder.hpp"

namespace liveupdate::tests {
namespace {

namespace fs = std::filesystem;
using supervisor::ExitCode;
using ::tests::guests::kReportGpa;
using ::tests::guests::read_field;
using ::tests::guests::Report;

constexpr uint64_t kMib = uint64_t{1} << 20;
constexpr uint64_t kGenerationGpa = 0xef000;
constexpr uint64_t kLeftAlone = 48 * kMib; // the guest covers its first 32 MiB

// VMs of a world, and their guests seen through their VMMs, as other RAM is not to be touched.
class Guests {
public:
    const World world;

    void write_vm(const std::string& name, const std::string& guest, const std::string& options,
        const std::string& more = {}) const {
        std::ofstream(world.at("config/" + name + ".toml"))
            << "[vmm]\nbinary = \"" << program("liveupdate-vmm") << "\"\n[machine]\nkernel = \""
            << guest_image(guest) << "\"\ncmdline = \"vcpus=1 " << options
            << "\"\n[[memory]]\nsize = \"64M\"\n[console]\ntype = \"none\"\n[update]\n"
            << kPatientUpdate << more;
    }
    // A guest that checks and changes its first 32 MiB all the time, and runs.
    void start_base() const {
        write_vm("base", "pattern.elf", "limit_mb=32 stride=512");
        world.expect(ExitCode::kDone, {"start", "base"});
        REQUIRE(LiveVm::eventually([&] { return passes("base") >= 2; }, std::chrono::seconds(60)));
    }
    pid_t vmm(const std::string& name) const { return world.status(name)["vmm"].value("pid", -1); }
    std::string bytes(const std::string& name, uint64_t gpa, uint64_t size) const {
        const auto read = touch(vmm(name), gpa, size);
        REQUIRE_MESSAGE(read, name, ": ", read.error().message);
        return *read;
    }
    Report report(const std::string& name) const {
        Report report{};
        const std::string raw = bytes(name, kReportGpa, sizeof(Report));
        std::memcpy(&report, raw.data(), sizeof(Report));
        return report;
    }
    uint64_t passes(const std::string& name) const { return report(name).vcpus[0].pattern.passes; }
    std::string generation(const std::string& name) const { return bytes(name, kGenerationGpa, 16); }

    // The guest goes on and has found nothing wrong.
    void check_sound(const std::string& name) const {
        CAPTURE(name);
        const uint64_t before = report(name).vcpus[0].counter;
        CHECK(LiveVm::eventually(
            [&] { return report(name).vcpus[0].counter > before + 10; }, std::chrono::seconds(60)));
        CHECK(report(name).header.errors == 0);
        CHECK(world.status(name).value("state", "") == "running");
    }
    void write(const std::string& name, uint64_t gpa, const std::string& what) const {
        const auto address = address_in(vmm(name), gpa, what.size());
        REQUIRE_MESSAGE(address, address.error().message);
        const iovec here{const_cast<char*>(what.data()), what.size()};
        const iovec there{reinterpret_cast<void*>(*address), what.size()};
        REQUIRE(::process_vm_writev(vmm(name), &here, 1, &there, 1, 0) == static_cast<ssize_t>(what.size()));
    }
    std::string template_file(const std::string& name) const {
        return world.at("state/.templates/" + name + "/guest.save");
    }
};

TEST_CASE("clones go on from the template's moment, and none sees what another writes") {
    NEEDS_KVM();
    const Guests guests;
    guests.start_base();
    const uint64_t before = guests.passes("base");
    guests.world.expect(ExitCode::kDone, {"template", "create", "base", "--live"}, "template base: made");
    const uint64_t after = guests.passes("base");
    guests.world.expect(ExitCode::kDone, {"clone", "base", "a", "b"}, "b: running");
    std::set<std::string> generations{guests.generation("base"), std::string(16, '\0')};
    for (const char* name : {"a", "b"}) {
        CAPTURE(name);
        CHECK(guests.passes(name) >= before);
        CHECK(guests.world.status(name).value("ram_origin", "") == guests.template_file("base"));
        CHECK(generations.insert(guests.generation(name)).second);
        // Each pass verifies what the one before it wrote, so two of them see all that the guest covers.
        const uint64_t now = guests.passes(name);
        CHECK(LiveVm::eventually([&] { return guests.passes(name) > now + 1; }, std::chrono::seconds(120)));
        guests.check_sound(name);
    }
    CHECK(after >= before);
    guests.check_sound("base");

    const std::string zeros(8, '\0');
    guests.write("a", kLeftAlone, "of a    ");
    guests.write("base", kLeftAlone, "of base ");
    CHECK(guests.bytes("b", kLeftAlone, 8) == zeros);
    guests.world.expect(ExitCode::kDone, {"clone", "base", "c"});
    CHECK(guests.bytes("c", kLeftAlone, 8) == zeros);
    CHECK(guests.bytes("a", kLeftAlone, 8) == "of a    ");
    guests.world.expect(ExitCode::kDone, {"template", "show", "base", "--verify"}, "as it was saved");
}

TEST_CASE("a clone is updated, rolled back, saved and stopped as any other VM") {
    NEEDS_KVM();
    const Guests guests;
    guests.start_base();
    guests.world.expect(ExitCode::kDone, {"template", "create", "base", "--name", "gold", "--stop"});
    guests.world.expect(ExitCode::kUnreachable, {"stop", "gold"});
    guests.world.expect(ExitCode::kDone, {"clone", "gold", "a"});
    const std::string generation = guests.generation("a");
    for (int i = 0; i < 2; ++i) {
        guests.world.expect(ExitCode::kDone, {"now", "a", "--binary", program("liveupdate-vmm-next")});
        guests.check_sound("a");
        guests.world.expect(ExitCode::kDone, {"rollback", "a"});
        guests.check_sound("a");
    }
    CHECK(guests.generation("a") == generation); // an update makes no copy
    CHECK(guests.world.read({"history", "a", "--json"}).size() == 4);
    const std::string folder = guests.world.at("saved");
    guests.world.expect(ExitCode::kDone, {"save", "a", folder, "--stop"});
    guests.world.expect(ExitCode::kDone, {"template", "rm", "gold"});
    guests.world.expect(ExitCode::kDone, {"restore", folder, "a"}); // which needs no template
    CHECK_FALSE(guests.world.status("a").contains("ram_origin"));
    CHECK(guests.generation("a") == generation);
    guests.check_sound("a");
    guests.world.expect(ExitCode::kDone, {"stop", "a"});
}

TEST_CASE("a template may go while its clones run, and is found no more") {
    NEEDS_KVM();
    const Guests guests;
    guests.start_base();
    guests.world.expect(ExitCode::kDone, {"template", "create", "base"});
    guests.world.expect(
        ExitCode::kRefused, {"template", "create", "base"}, "there is a template 'base' already");
    guests.check_sound("base");
    guests.world.expect(ExitCode::kDone, {"clone", "base", "a"});
    guests.world.expect(ExitCode::kDone, {"template", "rm", "base"}, "clones that run go on");
    CHECK(fs::is_empty(guests.world.at("state/.templates")));
    const uint64_t now = guests.passes("a");
    CHECK(LiveVm::eventually([&] { return guests.passes("a") > now + 1; }, std::chrono::seconds(120)));
    guests.world.expect(ExitCode::kDone, {"now", "a", "--binary", program("liveupdate-vmm-next")});
    guests.check_sound("a");
    guests.world.expect(ExitCode::kUnreachable, {"clone", "base", "b"}, "there is no template 'base'");
    guests.world.expect(ExitCode::kUnreachable, {"template", "rm", "base"}, "there is no template 'base'");
    guests.world.expect(ExitCode::kDone, {"template", "list"}, "there are no templates");
}

TEST_CASE("what kills a clone's supervisor or VMM touches neither the guest nor the other clones") {
    NEEDS_KVM();
    const Guests guests;
    guests.start_base();
    guests.world.expect(ExitCode::kDone, {"template", "create", "base", "--stop"});
    guests.world.expect(ExitCode::kDone, {"clone", "base", "vm", "--count", "3"}, "vm-3: running");
    const pid_t supervisor = guests.world.status("vm-1")["supervisor"]["pid"];
    const pid_t vmm = guests.vmm("vm-1");
    ::kill(supervisor, SIGKILL);
    CHECK(LiveVm::eventually([&] { return ::waitpid(supervisor, nullptr, WNOHANG) != 0; }));
    guests.world.expect(ExitCode::kDone, {"start", "vm-1"}, "running");
    CHECK(guests.vmm("vm-1") == vmm);
    guests.check_sound("vm-1");
    guests.world.expect(ExitCode::kDone, {"now", "vm-1", "--binary", program("liveupdate-vmm-next")});
    guests.check_sound("vm-1");
    ::kill(guests.vmm("vm-2"), SIGKILL);
    CHECK(LiveVm::eventually([&] { return guests.world.status("vm-2").value("state", "") == "lost"; }));
    guests.check_sound("vm-1");
    guests.check_sound("vm-3");
    guests.world.expect(ExitCode::kDone, {"stop", "vm-1", "vm-2", "vm-3"});
    CHECK(LiveVm::eventually([&] { return processes_of(guests.world.at("")).empty(); }));
    // Under the name of one that has ended; not of one that is no clone.
    guests.world.expect(ExitCode::kDone, {"clone", "base", "vm-2"});
    guests.check_sound("vm-2");
    guests.world.expect(ExitCode::kRefused, {"clone", "base", "vm-2"}, "vm-2 runs already");
    guests.world.expect(ExitCode::kRefused, {"clone", "base", "base"}, "that is no clone");
}

TEST_CASE("a template that is damaged, foreign or too new is refused before anything runs") {
    NEEDS_KVM();
    const Guests guests;
    guests.start_base();
    guests.world.expect(ExitCode::kDone, {"template", "create", "base", "--stop"});
    const std::string path = guests.template_file("base");
    fs::permissions(path, fs::perms::owner_all);
    const auto whole = fd::read_file(path, size_t{1} << 30);
    REQUIRE(whole);
    const auto write = [&](const std::string& bytes) {
        std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    };
    const auto with = [&](uint64_t at, char byte) {
        std::string bytes = *whole;
        bytes[at] = byte;
        return bytes;
    };
    auto reader = handoff::save::Reader::open(path);
    REQUIRE(reader);
    const auto layout = (*reader)->header().layout();
    const auto refuse = [&](const std::string& bytes, const std::string& word) {
        write(bytes);
        guests.world.expect(ExitCode::kRefused, {"clone", "base", "a"}, word);
        CHECK_FALSE(fs::exists(guests.world.at("config/a.toml")));
        CHECK(processes_of(guests.world.at("")).empty());
    };
    refuse(with(8, 2), "version 2");
    refuse(with(0, 'x'), "no file of a saved guest");
    refuse(with(layout.state_at + 50, static_cast<char>((*whole)[layout.state_at + 50] ^ 1)), "the state");
    refuse(whole->substr(0, whole->size() - 4096), "cut");
    refuse("", "no file of a saved guest");

    // A bitmap is looked at by the clone's supervisor.
    const uint64_t bitmap = layout.blocks[0].bitmap_at + 100;
    write(with(bitmap, static_cast<char>((*whole)[bitmap] ^ 1)));
    guests.world.expect(ExitCode::kRefused, {"clone", "base", "a"}, "bitmap");
    CHECK(processes_of(guests.world.at("")).empty());
    guests.world.expect(ExitCode::kRefused, {"template", "show", "base", "--verify"}, "bitmap");

    // Of RAM, chunk 20, which every pass of the guest comes by.
    const uint64_t page = layout.blocks[0].pages_at + 20 * kMib + 8;
    write(with(page, static_cast<char>((*whole)[page] ^ 1)));
    guests.world.expect(ExitCode::kRefused, {"template", "show", "base", "--verify"}, "chunk 20");
    static_cast<void>(guests.world.run({"clone", "base", "a"}));
    CHECK(LiveVm::eventually(
        [&] { return guests.world.status("a").value("state", "") == "lost"; }, std::chrono::seconds(60)));
    CHECK(guests.world.status("a").value("lost_reason", "").find("chunk 20") != std::string::npos);
    guests.world.expect(ExitCode::kDone, {"stop", "a"});
    write(*whole);
    guests.world.expect(ExitCode::kDone, {"clone", "base", "a"});
    guests.check_sound("a");
}

TEST_CASE("each clone has its own copy of the disks that it writes to, and shares those that it reads") {
    NEEDS_KVM();
    const Guests guests;
    const std::string disk = guests.world.at("disk.img"), other = guests.world.at("other.img");
    for (const auto& path : {disk, other}) {
        std::ofstream file(path);
        fs::resize_file(path, ::tests::guests::kDiskBytes);
    }
    guests.write_vm("base", "disk.elf", "",
        "[[disk]]\npath = \"" + disk + "\"\ndirect = false\n[[disk]]\npath = \"" + other +
            "\"\nread_only = true\ndirect = false\n");
    guests.world.expect(ExitCode::kDone, {"start", "base"});
    const auto done = [&](const std::string& name) { return guests.report(name).header.disk.completed; };
    const auto works = [&](const std::string& name) {
        CAPTURE(name);
        const uint64_t before = done(name);
        CHECK(LiveVm::eventually([&] { return done(name) > before + 500; }, std::chrono::seconds(60)));
        CHECK(guests.report(name).header.errors == 0);
    };
    works("base");
    // Whether /tmp can share blocks or not: the guest runs on, or the command says what to do.
    const auto live = guests.world.run({"template", "create", "base"});
    if (live.status != 0) {
        CHECK(live.status == static_cast<int>(ExitCode::kRefused));
        CHECK_MESSAGE(live.err.find("--stop") != std::string::npos, live.err);
        works("base");
        CHECK(fs::is_empty(guests.world.at("state/.templates")));
        guests.world.expect(ExitCode::kDone, {"template", "create", "base", "--stop"});
    } else {
        guests.world.expect(ExitCode::kDone, {"stop", "base", "--now"});
    }
    guests.world.expect(ExitCode::kDone, {"clone", "base", "a", "b"});
    for (const char* name : {"a", "b"}) {
        works(name); // every block that it reads is held against what it wrote before it was cloned
        const auto text = fd::read_file(guests.world.at(std::string("config/") + name + ".toml"));
        REQUIRE(text);
        CHECK(text->find(guests.world.at(std::string("state/") + name + "/disk0")) != std::string::npos);
        CHECK(text->find(other) != std::string::npos);
        CHECK(text->find(disk) == std::string::npos);
    }
    guests.world.expect(ExitCode::kDone, {"now", "a", "--binary", program("liveupdate-vmm-next")});
    works("a");
    works("b");
    guests.world.expect(ExitCode::kDone, {"stop", "a", "--now"});
    guests.world.expect(ExitCode::kDone, {"clone", "base", "a"}); // anew, with the template's disk
    works("a");
    works("b");
}

TEST_CASE("each clone has a tap and an address of its own, as the command line says") {
    NEEDS_KVM();
    if (const std::string why = NetNamespace::why_none(); !why.empty()) {
        std::printf("SKIPPED: %s\n", why.c_str());
        return;
    }
    const auto network = NetNamespace::make_multi_queue({"tap0", "tap1", "tap2"});
    REQUIRE_MESSAGE(network, network.error().message);
    const NetNamespace::Stay stay(**network);
    const Guests guests;
    guests.write_vm("base", "pattern.elf", "limit_mb=32 stride=512",
        "[[net]]\ntap = \"tap0\"\nmac = \"52:54:00:00:00:01\"\nqueues = 2\n");
    guests.world.expect(ExitCode::kDone, {"start", "base"});
    guests.world.expect(ExitCode::kDone, {"template", "create", "base"});
    guests.world.expect(ExitCode::kUsage, {"clone", "base", "a"}, "need --tap 1 times, not 0");
    guests.world.expect(ExitCode::kDone, {"clone", "base", "vm", "--count", "2", "--tap", "tap%"});
    for (const char* name : {"vm-1", "vm-2"}) {
        guests.check_sound(name);
        guests.world.expect(ExitCode::kDone, {"now", name, "--binary", program("liveupdate-vmm-next")});
        const auto text = fd::read_file(guests.world.at(std::string("config/") + name + ".toml"));
        REQUIRE(text);
        CHECK(text->find("52:54:00") == std::string::npos);
        CHECK(text->find(std::string("tap") + name[3]) != std::string::npos);
    }
    guests.check_sound("base");
}

TEST_CASE("a guest whose RAM lies on a disk is no template, and runs on") {
    NEEDS_KVM();
    if (folder_on_disk().empty()) {
        std::printf("SKIPPED: all that tests may write to is on tmpfs\n");
        return;
    }
    const Guests guests;
    guests.write_vm("base", "clock.elf", "", "");
    std::string text = fd::read_file(guests.world.at("config/base.toml")).value();
    const std::string size = "size = \"64M\"\n";
    text.replace(text.find(size), size.size(),
        size + "backing = \"file\"\ndirectory = \"" + folder_on_disk() + "\"\n");
    std::ofstream(guests.world.at("config/base.toml")) << text;
    guests.world.expect(ExitCode::kDone, {"start", "base"});
    guests.world.expect(ExitCode::kRefused, {"template", "create", "base"}, "cannot come page by page");
    CHECK(guests.world.status("base").value("state", "") == "running");
}

TEST_CASE("wrong uses of clone and template are refused in words") {
    NEEDS_KVM();
    const Guests guests;
    guests.start_base();
    guests.world.expect(ExitCode::kUnreachable, {"template", "create", "nobody"}, "nobody");
    guests.world.expect(ExitCode::kDone, {"template", "create", "base"});
    guests.world.expect(ExitCode::kUsage, {"clone", "base", "a", "b", "--count", "2"}, "--count is for one");
    guests.world.expect(ExitCode::kUsage, {"clone", "base", "a", "--tap", "tap0"}, "0 network cards");
    guests.world.expect(ExitCode::kUsage, {"clone", "base", "A"}, "not a VM name");
    guests.world.expect(ExitCode::kUsage, {"template"}, "subcommand");
    guests.world.expect(ExitCode::kUsage, {"clone", "../base", "a"}, "not a VM name");
    CHECK(guests.world.read({"template", "list", "--json"}).size() == 1);
    const auto about = guests.world.read({"template", "show", "base", "--json"});
    CHECK(about["vm"] == "base");
    CHECK(about["generation_id"] == true);
    CHECK(about["memory_bytes"] == 64 * kMib);
}

} // namespace
} // namespace liveupdate::tests
