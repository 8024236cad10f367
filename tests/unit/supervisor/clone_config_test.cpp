#include "supervisor/clone_config.hpp"

#include <doctest/doctest.h>

#include "supervisor/config.hpp"

namespace liveupdate::supervisor {
namespace {

constexpr const char* kTemplate = R"(
[vmm]
binary = "../vmm/liveupdate-vmm"
[machine]
vcpus = 2
kernel = "vmlinux"
initrd = "/boot/initrd"
[[memory]]
size = "256M"
[[disk]]
path = "disk.img"
serial = "one"
[[disk]]
path = "/srv/base.img"
read_only = true
[[net]]
tap = "tap0"
mac = "52:54:00:00:00:01"
[[net]]
tap = "tap1"
[console]
type = "file"
path = "/var/log/web1.console"
[policy]
on_lost = "restart"
)";

VmConfig cloned(const CloneFacts& facts) {
    const auto text = clone_config(kTemplate, "/etc/liveupdate/vms/web1.toml", facts);
    REQUIRE_MESSAGE(text, text.error().message);
    CHECK(text->starts_with(kCloneMark));
    const auto config = parse_vm_config(*text, "/etc/liveupdate/vms/" + facts.name + ".toml");
    REQUIRE_MESSAGE(config, config.error().message);
    return *config;
}

TEST_CASE("a clone's VM file is its template's but for what may be only one VM's") {
    const auto config = cloned({"job-1", "web1", {"tapa", "tapb"}, {"/state/job-1/disk0", ""}});
    CHECK(config.name == "job-1");
    CHECK(config.vmm_binary == "/etc/liveupdate/vmm/liveupdate-vmm");
    CHECK(config.vcpus == 2);
    CHECK(config.kernel == "/etc/liveupdate/vms/vmlinux");
    CHECK(config.initrd == "/boot/initrd");
    REQUIRE(config.disks.size() == 2);
    CHECK(config.disks[0].path == "/state/job-1/disk0");
    CHECK(config.disks[0].serial == "one"); // which the guest has seen
    CHECK(config.disks[1].path == "/srv/base.img");
    CHECK(config.disks[1].read_only);
    REQUIRE(config.nets.size() == 2);
    CHECK(config.nets[0].tap == "tapa");
    CHECK(config.nets[1].tap == "tapb");
    CHECK(config.console_path == "/var/log/job-1.console");
    CHECK(config.on_lost == OnLost::kRestart);
}

TEST_CASE("no two clones have a network address in common, nor one with its template") {
    const auto one = cloned({"job-1", "web1", {"tapa", "tapb"}, {}});
    const auto two = cloned({"job-2", "web1", {"tapc", "tapd"}, {}});
    CHECK(one.nets[0].mac == default_mac("job-1", 0));
    CHECK(one.nets[1].mac == default_mac("job-1", 1));
    CHECK(two.nets[0].mac != one.nets[0].mac);
    CHECK(to_string(one.nets[0].mac) != "52:54:00:00:00:01");
}

TEST_CASE("paths start from where the template's VM file lay, wherever the clone's lies") {
    const auto text =
        clone_config("[machine]\nkernel = \"../k\"\n", "/srv/vms/web1.toml", {"a", "web1", {}, {}});
    REQUIRE(text);
    CHECK(text->find("/srv/k") != std::string::npos);
}

TEST_CASE("a VM file in a template that is none is refused in words") {
    const auto text = clone_config("[machine\n", "/srv/vms/web1.toml", {"a", "gold", {}, {}});
    REQUIRE_FALSE(text);
    CHECK(text.error().code == ErrorCode::kInvalid);
    CHECK(text.error().message.find("template gold") != std::string::npos);
}

} // namespace
} // namespace liveupdate::supervisor
