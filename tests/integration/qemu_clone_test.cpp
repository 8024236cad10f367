// Templates of guests of QEMU, and clones of them, by the command as people use it.
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include <cinttypes>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "handoff/base/fd.hpp"
#include "handoff/save/reader.hpp"
#include "supervisor/qemu/listening_sockets.hpp"
#include "supervisor/ram_image.hpp"
#include "tests/integration/qemu_checks.hpp"
#include "tests/integration/world.hpp"

namespace liveupdate::tests {
namespace {

namespace fs = std::filesystem;
using supervisor::ExitCode;
using supervisor::qemu::listen_at;
using ::tests::guests::kReportGpa;
using ::tests::guests::Report;

constexpr uint64_t kMib = uint64_t{1} << 20;
constexpr uint64_t kLeftAlone = 56 * kMib; // the guest covers its first 32 MiB
constexpr const char* kUuid = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87";

// VMs of a world on QEMU, and their guests seen through their QEMUs.
class Guests {
public:
    const World world;
    std::string binary = kQemuPath;
    std::string machine = "q35";

    void write_vm(const std::string& name, const std::string& guest, const std::string& cmdline,
        const std::string& qemu = {}, const std::string& more = {}) const {
        LiveVmOptions options = qemu_guest();
        options.qemu_toml.replace(options.qemu_toml.find("\"q35\""), 5, "\"" + machine + "\"");
        std::ofstream(world.at("config/" + name + ".toml"))
            << "[vmm]\ndriver = \"qemu\"\nbinary = \"" << binary << "\"\n[qemu]\n"
            << options.qemu_toml << qemu << "[machine]\nkernel = \"" << guest_image(guest)
            << "\"\ncmdline = \"vcpus=1 " << cmdline
            << "\"\n[[memory]]\nsize = \"64M\"\n[console]\ntype = \"none\"\n[update]\n"
            << options.update_toml << options.extra_toml << more;
    }
    // A guest that checks and changes its first 32 MiB all the time, and runs.
    void start_base(const std::string& qemu = {}, const std::string& more = {}) const {
        write_vm("base", "pattern.elf", "limit_mb=32 stride=512", qemu, more);
        world.expect(ExitCode::kDone, {"start", "base"});
        REQUIRE(LiveVm::eventually([&] { return passes("base") >= 1; }, std::chrono::seconds(60)));
    }
    pid_t vmm(const std::string& name) const { return world.status(name)["vmm"].value("pid", -1); }
    std::string bytes(const std::string& name, uint64_t gpa, uint64_t size) const {
        std::string bytes(size, '\0');
        const iovec here{bytes.data(), size};
        const iovec there{reinterpret_cast<void*>(ram_of(vmm(name)) + gpa), size};
        REQUIRE(::process_vm_readv(vmm(name), &here, 1, &there, 1, 0) == static_cast<ssize_t>(size));
        return bytes;
    }
    void write(const std::string& name, uint64_t gpa, const std::string& what) const {
        const iovec here{const_cast<char*>(what.data()), what.size()};
        const iovec there{reinterpret_cast<void*>(ram_of(vmm(name)) + gpa), what.size()};
        REQUIRE(::process_vm_writev(vmm(name), &here, 1, &there, 1, 0) == static_cast<ssize_t>(what.size()));
    }
    Report report(const std::string& name) const {
        Report report{};
        const std::string raw = bytes(name, kReportGpa, sizeof(Report));
        std::memcpy(&report, raw.data(), sizeof(Report));
        return report;
    }
    uint64_t passes(const std::string& name) const { return report(name).vcpus[0].pattern.passes; }

    // The guest goes on and has found nothing wrong.
    void check_sound(const std::string& name) const {
        CAPTURE(name);
        const uint64_t before = report(name).vcpus[0].counter;
        CHECK(LiveVm::eventually(
            [&] { return report(name).vcpus[0].counter > before + 10; }, std::chrono::seconds(60)));
        CHECK(report(name).header.errors == 0);
        CHECK(world.status(name).value("state", "") == "running");
    }
    std::string template_file(const std::string& name) const {
        return world.at("state/.templates/base/" + name);
    }
    // The value of the first such option of a VM's QEMU that begins so.
    std::string argument(const std::string& name, const std::string& begin) const {
        const auto line = fd::read_file("/proc/" + std::to_string(vmm(name)) + "/cmdline", kMib);
        REQUIRE(line);
        const size_t at = line->find(std::string(1, '\0') + begin);
        return at == std::string::npos ? "" : std::string(line->c_str() + at + 1);
    }

private:
    // Where a QEMU has mapped the first page of its RAM block.
    static uint64_t ram_of(pid_t pid) {
        std::ifstream maps("/proc/" + std::to_string(pid) + "/maps");
        for (std::string line; std::getline(maps, line);) {
            uint64_t begin = 0, at = 0;
            if (line.find("/memfd:ram0") == std::string::npos && line.find("/ram0") == std::string::npos)
                continue;
            if (std::sscanf(line.c_str(), "%" SCNx64 "-%*x %*s %" SCNx64, &begin, &at) == 2 && at == 0)
                return begin;
        }
        FAIL("process ", pid, " has not mapped such RAM");
        return 0;
    }
};

std::vector<uint64_t> sums_of(const std::string& save) {
    const auto reader = handoff::save::Reader::open(save);
    REQUIRE_MESSAGE(reader, reader.error().message);
    const auto& sums = (*reader)->guest().qemu().image_sums();
    return {sums.begin(), sums.end()};
}

TEST_CASE("clones of a guest of QEMU go on from the template's moment, and none sees what another writes") {
    NEEDS_QEMU();
    const Guests guests;
    guests.start_base();
    const uint64_t before = guests.passes("base");
    guests.world.expect(ExitCode::kRefused, {"template", "create", "base", "--live"}, "without --live");
    CHECK(fs::is_empty(guests.world.at("state/.templates")));
    guests.world.expect(ExitCode::kDone, {"template", "create", "base"}, "template base: made");
    guests.check_sound("base");
    guests.world.expect(ExitCode::kDone, {"clone", "base", "a", "b"}, "b: running");
    for (const char* name : {"a", "b"}) {
        CAPTURE(name);
        CHECK(guests.passes(name) >= before);
        CHECK(guests.world.status(name).value("ram_origin", "") == guests.template_file("ram0"));
        CHECK(guests.argument(name, "{\"id\":\"ram0\"").find("\"share\":false") != std::string::npos);
        // Each pass verifies what the one before it wrote, so two of them see all that the guest covers.
        const uint64_t now = guests.passes(name);
        CHECK(LiveVm::eventually([&] { return guests.passes(name) > now + 1; }, std::chrono::seconds(120)));
        guests.check_sound(name);
    }
    const std::string zeros(8, '\0');
    guests.write("a", kLeftAlone, "of a    ");
    guests.write("base", kLeftAlone, "of base ");
    CHECK(guests.bytes("b", kLeftAlone, 8) == zeros);
    guests.world.expect(ExitCode::kDone, {"clone", "base", "c"});
    CHECK(guests.bytes("c", kLeftAlone, 8) == zeros);
    CHECK(guests.bytes("a", kLeftAlone, 8) == "of a    ");
    guests.world.expect(ExitCode::kDone, {"template", "show", "base", "--verify"}, "as it was saved");
    const auto about = guests.world.read({"template", "show", "base", "--json"});
    CHECK(about["saved_bytes"] > 32 * kMib);
    CHECK(about["generation_id"] == false);
    guests.world.expect(ExitCode::kDone, {"template", "rm", "base"}, "clones that run go on");
    guests.check_sound("b");
}

TEST_CASE("a clone of a guest of QEMU is found again by its next supervisor, and is not updated, in words") {
    NEEDS_QEMU();
    const Guests guests;
    guests.start_base();
    guests.world.expect(ExitCode::kDone, {"template", "create", "base", "--stop"});
    guests.world.expect(ExitCode::kDone, {"clone", "base", "a"});
    const pid_t supervisor = guests.world.status("a")["supervisor"]["pid"];
    const pid_t qemu = guests.vmm("a");
    ::kill(supervisor, SIGKILL);
    CHECK(LiveVm::eventually([&] { return ::waitpid(supervisor, nullptr, WNOHANG) != 0; }));
    guests.world.expect(ExitCode::kDone, {"start", "a"}, "running");
    CHECK(guests.vmm("a") == qemu);
    CHECK(guests.world.status("a").value("ram_origin", "") == guests.template_file("ram0"));
    guests.check_sound("a");
    const OtherQemu other;
    const auto refused = guests.world.run({"now", "a", "--binary", other.path()});
    CHECK(refused.status == static_cast<int>(ExitCode::kRefused));
    CHECK_MESSAGE(
        (refused.out + refused.err).find("as a clone's is") != std::string::npos, refused.out, refused.err);
    CHECK(guests.vmm("a") == qemu);
    guests.check_sound("a");
    guests.world.expect(ExitCode::kRefused, {"save", "a", guests.world.at("saved")}, "private to its QEMU");
    guests.check_sound("a");
    // The whole of it is still what was saved: nothing has been taken out of it.
    guests.world.expect(ExitCode::kDone, {"template", "show", "base", "--verify"}, "as it was saved");
}

TEST_CASE("a template of a guest of QEMU that is damaged is refused, or is told by a look at all of it") {
    NEEDS_QEMU();
    const Guests guests;
    guests.start_base();
    guests.world.expect(ExitCode::kDone, {"template", "create", "base", "--stop"});
    const std::string image = guests.template_file("ram0"), save = guests.template_file("guest.save");
    const auto sums = sums_of(save);
    REQUIRE(sums.size() == 64);
    CHECK(supervisor::read_ram_image(image, 64 * kMib, sums, {}).has_value());
    const auto change = [](const std::string& path, uint64_t at) {
        std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
        file.seekg(static_cast<std::streamoff>(at));
        const int was = file.get();
        file.seekp(static_cast<std::streamoff>(at));
        file.put(static_cast<char>(was ^ 1)).flush();
        REQUIRE(file.good());
    };
    change(image, 20 * kMib + 8);
    guests.world.expect(ExitCode::kRefused, {"template", "show", "base", "--verify"}, "chunk 20");
    change(image, 20 * kMib + 8);
    change(image, kLeftAlone); // where it is a hole
    guests.world.expect(ExitCode::kRefused, {"template", "show", "base", "--verify"}, "chunk 56");
    change(image, kLeftAlone);
    guests.world.expect(ExitCode::kDone, {"template", "show", "base", "--verify"});
    fs::resize_file(image, 63 * kMib);
    guests.world.expect(ExitCode::kRefused, {"clone", "base", "a"}, "bytes");
    CHECK(processes_of(guests.world.at("")).empty());
    fs::resize_file(image, 64 * kMib);
    const auto size = fs::file_size(save);
    fs::permissions(save, fs::perms::owner_all);
    change(save, size - 4096); // the state's last page
    static_cast<void>(size);
    guests.world.expect(ExitCode::kRefused, {"clone", "base", "a"}, "state");
    CHECK(processes_of(guests.world.at("")).empty());
}

TEST_CASE("a clone of a guest of QEMU has disks, addresses and a generation of its own") {
    NEEDS_QEMU();
    const Guests guests;
    const std::string disk = guests.world.at("disk.img");
    std::ofstream(disk) << "the guest's";
    fs::resize_file(disk, kMib);
    guests.start_base(
        std::string("extra_args = [\"-device\", \"vmgenid,guid=") + kUuid + ",id=generation\"]\n",
        "[[disk]]\npath = \"" + disk + "\"\ndirect = false\n[[net]]\ntype = \"user\"\n");
    guests.world.expect(ExitCode::kDone, {"template", "create", "base", "--stop"});
    CHECK(guests.world.read({"template", "show", "base", "--json"})["generation_id"] == true);
    guests.world.expect(ExitCode::kDone, {"clone", "base", "a", "b"});
    std::set<std::string> generations{kUuid}, addresses;
    for (const char* name : {"a", "b"}) {
        CAPTURE(name);
        guests.check_sound(name);
        const std::string device = guests.argument(name, "vmgenid");
        CHECK(generations.insert(device.substr(device.rfind('=') + 1)).second);
        const std::string card = guests.argument(name, "{\"driver\":\"virtio-net");
        const size_t mac = card.find("\"mac\":");
        REQUIRE(mac != std::string::npos);
        CHECK(addresses.insert(card.substr(mac, 26)).second);
        const std::string copy = guests.world.at(std::string("state/") + name + "/disk0");
        CHECK(guests.argument(name, "{\"cache\"").find(copy) != std::string::npos);
        CHECK(fd::read_file(copy).value().starts_with("the guest's"));
    }
}

TEST_CASE("a clone that a newer QEMU has saved has RAM of its own when it is restored, and is updated then") {
    NEEDS_NEWER_QEMU();
    Guests guests;
    guests.binary = newer_qemu();
    guests.machine = "pc-q35-7.2";
    guests.start_base();
    guests.world.expect(ExitCode::kDone, {"template", "create", "base", "--stop"});
    guests.world.expect(ExitCode::kDone, {"clone", "base", "a"});
    guests.check_sound("a");
    const uint64_t before = guests.passes("a");
    const std::string folder = guests.world.at("saved");
    guests.world.expect(ExitCode::kDone, {"save", "a", folder, "--stop"}, "saved to");
    guests.world.expect(ExitCode::kDone, {"template", "show", "base", "--verify"}, "as it was saved");
    guests.world.expect(ExitCode::kDone, {"template", "rm", "base"});
    guests.world.expect(ExitCode::kDone, {"restore", folder, "a"}, "running");
    CHECK_FALSE(guests.world.status("a").contains("ram_origin"));
    CHECK(guests.passes("a") >= before);
    guests.world.expect(ExitCode::kDone, {"now", "a", "--binary", kQemuPath});
    const uint64_t now = guests.passes("a");
    CHECK(LiveVm::eventually([&] { return guests.passes("a") > now + 1; }, std::chrono::seconds(120)));
    guests.check_sound("a");
}

TEST_CASE("a guest of QEMU that could give pages of a template back is refused as one") {
    NEEDS_QEMU();
    const Guests guests;
    guests.start_base("extra_args = [\"-device\", \"virtio-balloon-pci\"]\n");
    guests.world.expect(ExitCode::kRefused, {"template", "create", "base"}, "virtio-balloon");
    CHECK(fs::is_empty(guests.world.at("state/.templates")));
    guests.check_sound("base");
    const std::string folder = guests.world.at("saved");
    guests.world.expect(ExitCode::kDone, {"save", "base", folder, "--stop"}); // which is no matter then
    guests.world.expect(ExitCode::kDone, {"restore", folder, "base"});
    guests.check_sound("base");
}

// A port of the loopback interface that nobody listens at.
std::string free_port() {
    const auto socket = listen_at({.host = "127.0.0.1", .port = "0"});
    REQUIRE_MESSAGE(socket, socket.error().message);
    sockaddr_in address{};
    socklen_t size = sizeof(address);
    REQUIRE(::getsockname(socket->get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
    return std::to_string(ntohs(address.sin_port));
}

TEST_CASE("a guest of QEMU that listens where its clones would, too, is refused as a template, and saved") {
    NEEDS_QEMU();
    const Guests guests;
    const std::string vnc = guests.world.at("vnc"), device = guests.world.at("device");
    const std::string port = free_port();
    std::string line, words, net;
    const auto is_there = [&] {
        if (!net.empty()) return !listen_at({.host = "127.0.0.1", .port = port}).has_value();
        return fd::unix_connect(line.starts_with("vnc") ? vnc : device, SOCK_STREAM).has_value();
    };
    SUBCASE("by a network") {
        line =
            "extra_args = [\"-netdev\", \"stream,id=n,server=on,addr.type=unix,addr.path=" + device + "\"]\n";
        words = "has devices that listen, and each clone would listen at the same place";
    }
    SUBCASE("by forwarded ports") {
        net = "[[net]]\ntype = \"user\"\nhostfwd = [\"tcp:127.0.0.1:" + port + "-:22\"]\n";
        words = "has 'hostfwd', and each clone would listen at the same place";
    }
    SUBCASE("by a character device") {
        line = "extra_args = [\"-chardev\", \"socket,id=d,path=" + device + ",server=on,wait=off\"]\n";
        words = "has devices that listen, and each clone would listen at the same place";
    }
    SUBCASE("by VNC") {
        line = "vnc = \"unix:" + vnc + "\"\n";
        words = "has 'vnc', and each clone would listen at the same place";
    }
    guests.start_base(line, net);
    CHECK(is_there());
    guests.world.expect(ExitCode::kRefused, {"template", "create", "base"}, words);
    CHECK(fs::is_empty(guests.world.at("state/.templates")));
    const std::string folder = guests.world.at("saved");
    guests.world.expect(ExitCode::kDone, {"save", "base", folder, "--stop"});
    CHECK_FALSE(fs::exists(device));
    CHECK_FALSE(is_there());
    guests.world.expect(ExitCode::kDone, {"restore", folder, "base"});
    CHECK(is_there());
    guests.check_sound("base");
}

} // namespace
} // namespace liveupdate::tests
