#include "supervisor/qemu/command_line.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

using namespace liveupdate::supervisor;
using namespace liveupdate::supervisor::qemu;

namespace {

std::vector<std::string> arguments_of(const std::string& toml, const std::string& machine_type) {
    const auto config = parse_vm_config(
        "[vmm]\ndriver = \"qemu\"\n[[memory]]\nsize = \"512M\"\n" + toml, "/etc/vms/web1.toml");
    if (!config) FAIL(config.error().message);
    return guest_arguments(*config, machine_type);
}

// The values of all `option`s.
std::vector<std::string> values(const std::vector<std::string>& all, const std::string& option) {
    std::vector<std::string> found;
    for (size_t i = 0; i + 1 < all.size(); ++i)
        if (all[i] == option) found.push_back(all[i + 1]);
    return found;
}

} // namespace

TEST_CASE("RAM is the descriptor that the supervisor passes, shared") {
    const auto all = arguments_of("", "pc-q35-7.2");
    const auto ram = nlohmann::json::parse(values(all, "-object").at(0));
    CHECK(ram["mem-path"] == "/proc/self/fd/10");
    CHECK(ram["share"] == true);
    CHECK(ram["size"] == 512u << 20);
    CHECK(values(all, "-machine") == std::vector<std::string>{"pc-q35-7.2,memory-backend=ram0"});
    CHECK(values(all, "-m") == std::vector<std::string>{"536870912B"});
}

TEST_CASE("options of the machine stay with the type that it is pinned to") {
    const auto all = arguments_of("[qemu]\nmachine = \"q35,smm=off\"\n", "pc-q35-7.2");
    CHECK(values(all, "-machine") == std::vector<std::string>{"pc-q35-7.2,smm=off,memory-backend=ram0"});
    CHECK(machine_type_of("q35,smm=off") == "q35");
}

TEST_CASE("a path with commas and quotes is one path") {
    const auto all = arguments_of("[[disk]]\npath = '/images/a,b\"c.qcow2'\nformat = \"qcow2\"\n", "q35");
    const auto nodes = values(all, "-blockdev");
    REQUIRE(nodes.size() == 2);
    CHECK(nlohmann::json::parse(nodes[0])["filename"] == "/images/a,b\"c.qcow2");
    CHECK(nlohmann::json::parse(nodes[1])["driver"] == "qcow2");
    CHECK(nlohmann::json::parse(values(all, "-device").at(0))["driver"] == "virtio-blk-pci");
}

TEST_CASE("a microvm has its devices on MMIO") {
    const auto all = arguments_of("[[disk]]\npath = \"d\"\n[[net]]\ntap = \"t\"\n", "microvm");
    const auto devices = values(all, "-device");
    REQUIRE(devices.size() == 3);
    CHECK(nlohmann::json::parse(devices[0])["driver"] == "virtio-blk-device");
    CHECK(nlohmann::json::parse(devices[1])["driver"] == "virtio-net-device");
    CHECK(devices[2] == "virtio-rng-device");
    CHECK(nlohmann::json::parse(values(all, "-netdev").at(0))["fd"] == "20");
}

TEST_CASE("a microvm under KVM has the kernel's IOAPIC, unless its options say what it has") {
    const auto machine = [](const std::string& toml) {
        return values(arguments_of("[qemu]\n" + toml, "microvm"), "-machine").at(0);
    };
    CHECK(machine("machine = \"microvm,rtc=on\"\n") ==
          "microvm,rtc=on,ioapic2=off,kernel-irqchip=on,memory-backend=ram0");
    CHECK(machine("machine = \"microvm,ioapic2=off,kernel_irqchip=on\"\n") ==
          "microvm,ioapic2=off,kernel_irqchip=on,memory-backend=ram0");
    CHECK(machine("machine = \"microvm\"\naccel = \"tcg\"\n") == "microvm,memory-backend=ram0");
}

TEST_CASE("the console is closed until somebody has the guest") {
    const auto all = arguments_of("", "q35");
    CHECK(values(all, "-chardev") == std::vector<std::string>{"null,id=console"});
    CHECK(values(all, "-add-fd") == std::vector<std::string>{console_fds()});
    CHECK(values(arguments_of("[console]\ntype = \"none\"\n", "q35"), "-add-fd").empty());
}

TEST_CASE("VNC does not listen until somebody has the guest, and keeps its options") {
    CHECK(values(arguments_of("[qemu]\nvnc = \"unix:/run/vnc\"\n", "q35"), "-vnc") ==
          std::vector<std::string>{"none"});
    CHECK(values(arguments_of("[qemu]\nvnc = \"127.0.0.1:1,share=ignore\"\n", "q35"), "-vnc") ==
          std::vector<std::string>{"none,share=ignore"});
    CHECK(values(arguments_of("", "q35"), "-vnc").empty());
}

TEST_CASE("RAM of a clone is mapped privately out of the same descriptor") {
    const auto config =
        parse_vm_config("[vmm]\ndriver = \"qemu\"\n[[memory]]\nsize = \"512M\"\n", "/etc/vms/web1.toml");
    REQUIRE(config);
    const auto own = guest_arguments(*config, "pc-q35-7.2");
    const auto clone = guest_arguments(*config, "pc-q35-7.2", RamMapping::kPrivate);
    CHECK(nlohmann::json::parse(values(clone, "-object").at(0))["mem-path"] == "/proc/self/fd/10");
    CHECK(maps_ram_privately(clone));
    CHECK_FALSE(maps_ram_privately(own));
    CHECK_FALSE(maps_ram_privately({"-object", "memory-backend-ram,id=ram0", "-m", "1G"}));
}

TEST_CASE("a generation id gets another value, however the device is written") {
    std::vector<std::string> all{"-device", "vmgenid,guid=auto", "-device", "vmgenid", "-device",
        R"({"driver":"vmgenid","guid":"auto"})", "-device", "vmgenid-like"};
    CHECK(set_generation(all, "u"));
    CHECK(all[1] == "vmgenid,guid=auto,guid=u"); // of two, QEMU takes the last
    CHECK(all[3] == "vmgenid,guid=u");
    CHECK(nlohmann::json::parse(all[5])["guid"] == "u");
    CHECK(all[7] == "vmgenid-like");
    std::vector<std::string> none{"-device", "virtio-rng-pci"};
    CHECK_FALSE(set_generation(none, "u"));
}
