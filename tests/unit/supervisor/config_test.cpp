#include "supervisor/config.hpp"

#include <doctest/doctest.h>

#include "test_folder.hpp"

using namespace liveupdate;
using namespace liveupdate::supervisor;
using namespace std::chrono_literals;

namespace {

const std::string kPath = "/etc/liveupdate/vms/web1.toml";
const std::string kLeast = "[machine]\nkernel = \"/boot/vmlinux\"\n[[memory]]\nsize = \"512M\"\n";

VmConfig good(const std::string& toml) {
    auto config = parse_vm_config(toml, kPath);
    INFO((config ? "" : config.error().message));
    REQUIRE(config.has_value());
    return *config;
}

// The errors of a file, without its path.
std::string errors_of(const std::string& toml) {
    const auto config = parse_vm_config(toml, kPath);
    REQUIRE_FALSE(config.has_value());
    CHECK(config.error().code == ErrorCode::kInvalid);
    std::string text = config.error().message;
    for (size_t at = text.find(kPath + ":"); at != std::string::npos; at = text.find(kPath + ":"))
        text.erase(at, kPath.size() + 1);
    return text;
}

// The error of a good file with one more line in a section that it has not.
std::string error_with(const std::string& addition) {
    return errors_of(kLeast + addition);
}

} // namespace

TEST_CASE("the least file has every default") {
    const VmConfig config = good(kLeast);
    CHECK(config.name == "web1");
    CHECK(config.vmm_binary == kDefaultVmmBinary);
    CHECK(config.vcpus == 1);
    CHECK(config.cpu_template == "x86-64-v2.1");
    CHECK(config.kernel == "/boot/vmlinux");
    CHECK(config.firmware.empty());
    CHECK(config.initrd.empty());
    REQUIRE(config.memory.size() == 1);
    CHECK(config.memory_bytes() == 512u << 20);
    CHECK(config.memory[0].backing == Backing::kMemfd);
    CHECK(config.console == ConsoleType::kPty);
    CHECK(config.rehearse == Rehearse::kAlways);
    CHECK(config.probation == 2s);
    CHECK(config.blackout_limit == 100ms);
    CHECK(config.timeout == 30s);
    CHECK(config.populate);
    CHECK(config.on_lost == OnLost::kStop);
    CHECK(config.stop_timeout == 30s);
    CHECK(config.group.empty());
    CHECK_FALSE(config.witness);
    CHECK(config.rng);
    CHECK(config.nets.empty());
}

TEST_CASE("a full file is read whole") {
    const VmConfig config = good(R"(
[vmm]
binary = "../vmm/liveupdate-vmm"
[machine]
vcpus = 64
cpu_template = "x86-64-v3.1"
firmware = "fw.bin"
rng = false
[[memory]]
size = 1073741824
backing = "tmpfs"
[[memory]]
size = "4G"
backing = "hugetlbfs"
directory = "/mnt/huge"
[[net]]
tap = "tap-web1"
mac = "52:54:00:AB:cd:01"
queues = 4
[[net]]
tap = "tap1"
[console]
type = "file"
path = "/var/log/web1.console"
[update]
rehearse = "plan"
probation = "0s"
blackout_limit = "50ms"
timeout = "1m"
populate = false
[policy]
on_lost = "restart"
stop_timeout = "2m"
owner = "root"
group = "liveupdate"
[debug]
witness = true
)");
    CHECK(config.vmm_binary == "/etc/liveupdate/vmm/liveupdate-vmm");
    CHECK(config.vcpus == 64);
    CHECK(config.firmware == "/etc/liveupdate/vms/fw.bin");
    REQUIRE(config.memory.size() == 2);
    CHECK(config.memory[0].size == 1u << 30);
    CHECK(config.memory[0].directory == "/dev/shm");
    CHECK(config.memory[1].backing == Backing::kHugetlbfs);
    CHECK(config.memory[1].directory == "/mnt/huge");
    CHECK_FALSE(config.rng);
    REQUIRE(config.nets.size() == 2);
    CHECK(config.nets[0].tap == "tap-web1");
    CHECK(to_string(config.nets[0].mac) == "52:54:00:ab:cd:01");
    CHECK(config.nets[0].queues == 4);
    CHECK(config.nets[1].mac == default_mac("web1", 1));
    CHECK(config.nets[1].queues == 1);
    CHECK(config.console == ConsoleType::kFile);
    CHECK(config.console_path == "/var/log/web1.console");
    CHECK(config.rehearse == Rehearse::kPlan);
    CHECK(config.probation == 0s);
    CHECK(config.timeout == 1min);
    CHECK_FALSE(config.populate);
    CHECK(config.on_lost == OnLost::kRestart);
    CHECK(config.stop_timeout == 2min);
    CHECK(config.owner == "root");
    CHECK(config.group == "liveupdate");
    CHECK(config.witness);
}

TEST_CASE("an unknown key is told with its place and the nearest key") {
    CHECK(errors_of("[machine]\nkernel = \"/k\"\nvcpu = 2\n[[memory]]\nsize = \"16M\"\n") ==
          "3:1: unknown key 'vcpu' in [machine]; did you mean 'vcpus'?");
    CHECK(error_with("[update]\n  colour = 1\n") == "6:3: unknown key 'colour' in [update]");
    CHECK(error_with("[upate]\nx = 1\n").find("unknown section 'upate'; did you mean 'update'?") !=
          std::string::npos);
    CHECK(errors_of("vcpus = 2\n" + kLeast) == "1:1: unknown key 'vcpus'");
}

TEST_CASE("all errors are told at once, in the order of the file") {
    CHECK(errors_of(
              "[machine]\nvcpus = 65\nkernel = 5\n[[memory]]\nsize = \"512X\"\nbacking = \"shm\"\n[update]\n"
              "populate = \"yes\"\nprobation = 2\n") ==
          "2:9: 'vcpus' in [machine] is 65; write an integer from 1 to 64\n"
          "3:10: 'kernel' in [machine] is an integer; write a string\n"
          "5:8: 'size' in [[memory]]: '512X' is not a size; write for example 512M, 4G or 2048K\n"
          "6:11: 'backing' in [[memory]] is 'shm'; write 'memfd', 'tmpfs', 'hugetlbfs', 'private' or 'file'\n"
          "8:12: 'populate' in [update] is a string; write true or false\n"
          "9:13: 'probation' in [update] is an integer; write a duration in quotes, for example \"500ms\", "
          "\"2s\" or "
          "\"1m\"");
}

TEST_CASE("what is missing is told") {
    CHECK(errors_of("") ==
          "1:1: neither 'kernel' nor 'firmware' in [machine]; write what the guest starts from\n"
          "1:1: [[memory]] is missing; write one with for example size = \"512M\"");
    CHECK(errors_of("[machine]\nkernel = \"/k\"\n[[memory]]\nbacking = \"memfd\"\n") ==
          "3:1: 'size' is missing in [[memory]]; write for example size = \"512M\"");
    CHECK(error_with("[console]\ntype = \"file\"\n") ==
          "6:8: 'path' is missing in [console]; type 'file' needs it");
}

TEST_CASE("an initrd goes with a kernel, from the file's folder") {
    CHECK(good("[machine]\ninitrd = \"initrd.img\"\nkernel = \"/k\"\n[[memory]]\nsize = \"16M\"\n").initrd ==
          "/etc/liveupdate/vms/initrd.img");
    CHECK(errors_of("[machine]\nfirmware = \"/f\"\ninitrd = \"i\"\n[[memory]]\nsize = \"16M\"\n") ==
          "3:10: 'initrd' in [machine] is for a 'kernel', not for 'firmware'; leave it out");
}

TEST_CASE("what contradicts itself is told") {
    CHECK(errors_of("[machine]\nkernel = \"/k\"\nfirmware = \"/f\"\n[[memory]]\nsize = \"16M\"\n") ==
          "3:12: both 'kernel' and 'firmware' in [machine]; keep the one the guest starts from");
    CHECK(errors_of("[machine]\nfirmware = \"/f\"\ncmdline = \"x\"\n[[memory]]\nsize = \"16M\"\n") ==
          "3:11: 'cmdline' in [machine] is for a 'kernel', not for 'firmware'; leave it out");
    CHECK(
        error_with("directory = \"/dev/shm\"\n") ==
        "5:13: 'directory' in [[memory]] is for backing 'tmpfs', 'hugetlbfs' or 'file'; other RAM lies in no "
        "folder");
    CHECK(error_with("backing = \"file\"\n") ==
          "3:1: 'directory' is missing in [[memory]]; backing 'file' needs "
          "it: write a folder on a disk");
    CHECK(error_with("[console]\ntype = \"pty\"\npath = \"/x\"\n") ==
          "7:8: 'path' in [console] is for type 'file' only; leave it out");
}

TEST_CASE("sizes of memory are checked") {
    const auto memory = [](const std::string& block) {
        return errors_of("[machine]\nkernel = \"/k\"\n[[memory]]\n" + block + "\n");
    };
    CHECK(memory("size = 4097") == "4:8: 'size' in [[memory]] is 4097 bytes; memfd needs a multiple of 4K");
    CHECK(memory("size = 0") == "4:8: 'size' in [[memory]] is 0 bytes; memfd needs a multiple of 4K");
    CHECK(memory("size = -4096") == "4:8: 'size' in [[memory]] is negative; write a size");
    CHECK(memory("size = \"33M\"\nbacking = \"hugetlbfs\"") ==
          "4:8: 'size' in [[memory]] is 34603008 bytes; hugetlbfs needs a multiple of 2M");
    CHECK(memory("size = \"12M\"") == "3:1: [[memory]] is 12 MiB in sum; a guest needs at least 16 MiB");
    CHECK(memory("size = \"32T\"") == "4:8: 'size' in [[memory]] is more than 16T; write less");
    const auto both =
        good("[machine]\nkernel = \"/k\"\n[[memory]]\nsize = \"8M\"\n[[memory]]\nsize = \"8M\"\n");
    CHECK(both.memory_bytes() == 16u << 20);
}

TEST_CASE("network cards are checked") {
    const auto net = [](const std::string& keys) { return error_with("[[net]]\n" + keys + "\n"); };
    CHECK(
        net("queues = 2") == "5:1: 'tap' is missing in [[net]]; write the name of a tap device of this host");
    for (const char* name : {"", "sixteen_letters_", "a/b", "..", "a b", "tap%d"})
        CHECK(net("tap = \"" + std::string(name) + "\"") ==
              "6:7: 'tap' in [[net]] is '" + std::string(name) + "', which is no network device's name");
    CHECK(net("tap = \"t\"\nqueues = 9") == "7:10: 'queues' in [[net]] is 9; write an integer from 1 to 8");
    for (const char* mac : {"", "52:54:00:12:34", "52-54-00-12-34-56", "52:54:00:12:34:5g",
             "00:00:00:00:00:00", "52:54:00:12:34:567"})
        CHECK(net("tap = \"t\"\nmac = \"" + std::string(mac) + "\"") ==
              "7:7: 'mac' in [[net]]: '" + std::string(mac) +
                  "' is not an Ethernet address; write for example 52:54:00:12:34:56");
    CHECK(
        net("tap = \"t\"\nmac = \"53:54:00:12:34:56\"") ==
        "7:7: 'mac' in [[net]]: '53:54:00:12:34:56' is the address of a group; the first byte of a card's is "
        "even");
    CHECK(net("tap = \"t\"\n[[net]]\ntap = \"t\"") ==
          "8:7: 'tap' in [[net]] is 't' for the second time; one card has it");
    CHECK(net("tap = \"t\"\nmac = \"52:54:00:12:34:56\"\n[[net]]\ntap = \"u\"\nmac = \"52:54:00:12:34:56\"")
              .find("10:7: 'mac' in [[net]] is another card's too: 52:54:00:12:34:56") == 0);
    std::string many;
    for (int i = 0; i < 3; ++i)
        many += "[[net]]\ntap = \"t" + std::to_string(i) + "\"\nqueues = 8\n";
    CHECK(error_with(many) == "5:1: [[net]] have 24 queues in sum; write at most 16");
    for (int i = 3; i < 9; ++i)
        many += "[[net]]\ntap = \"t" + std::to_string(i) + "\"\n";
    CHECK(error_with(many) == "5:1: more than 8 [[net]]; a guest has no more");
}

TEST_CASE("disks, cards, entropy and console together are no more than a guest's places") {
    std::string most;
    for (int i = 0; i < 8; ++i)
        most += "[[disk]]\npath = \"/d" + std::to_string(i) + "\"\n";
    for (int i = 0; i < 5; ++i)
        most += "[[net]]\ntap = \"t" + std::to_string(i) + "\"\n";
    CHECK(good(kLeast + most).nets.size() == 5);
    good("[vmm]\ndriver = \"qemu\"\n" + kLeast + most +
         "[[net]]\ntap = \"t5\"\n"); // whose machines have places of their own
    CHECK(error_with(most + "[console]\ndevice = \"virtio\"\n") ==
          "21:1: 8 [[disk]]s, 5 [[net]]s, the source of entropy ('rng'), the virtio console are 15 devices; "
          "a guest has at most 14, so leave some out");
    CHECK(error_with(most + "[[net]]\ntap = \"t5\"\n") ==
          "21:1: 8 [[disk]]s, 6 [[net]]s, the source of entropy ('rng') are 15 devices; a guest has at most "
          "14, so leave some out");
}

TEST_CASE("a card's address follows from the VM's name, and never changes") {
    CHECK(to_string(default_mac("web1", 0)) == "4a:f4:ef:4e:9d:a6");
    CHECK(to_string(default_mac("web1", 1)) == "32:58:39:fb:eb:8b");
    for (unsigned i = 0; i < 1000; ++i) {
        const MacAddress mac = default_mac("vm", i);
        CHECK((mac[0] & 3) == 2);
        CHECK(mac != default_mac("vm", i + 1));
        CHECK(mac != default_mac("vn", i));
        CHECK(*parse_mac(to_string(mac)) == mac);
    }
}

TEST_CASE("limits of durations and texts are checked") {
    CHECK(error_with("[update]\nblackout_limit = \"0s\"\n") ==
          "6:18: 'blackout_limit' in [update] is 0s; write a duration from 1.00 ms to 1min 0s");
    CHECK(errors_of("[machine]\nkernel = \"/k\"\ncmdline = \"" + std::string(2048, 'x') +
                    "\"\n[[memory]]\nsize = \"16M\"\n") ==
          "3:11: 'cmdline' in [machine] has 2048 bytes; a kernel takes 2047");
    CHECK(errors_of("[machine]\nkernel = \"a\\u0000b\"\n[[memory]]\nsize = \"16M\"\n") ==
          "2:10: 'kernel' in [machine] holds a NUL character; leave it out");
}

TEST_CASE("a section of the wrong kind is told") {
    CHECK(errors_of("memory = 5\n[machine]\nkernel = \"/k\"\n")
              .find("1:10: 'memory' is an integer; write it as [[memory]]") == 0);
    CHECK(errors_of("machine = 5\n[[memory]]\nsize = \"16M\"\n")
              .find("1:11: 'machine' is an integer; write it as [machine]") != std::string::npos);
}

TEST_CASE("a file that is no TOML is told with the place") {
    CHECK(errors_of("[machine]\nvcpus = = 2\n").find("2:9: ") == 0);
    CHECK(errors_of("[machine]\nvcpus = 1\nvcpus = 2\n").find("3:") == 0);
}

TEST_CASE("the file's name is the VM's name") {
    CHECK_FALSE(parse_vm_config(kLeast, "/x/Web1.toml").has_value());
    CHECK_FALSE(parse_vm_config(kLeast, "/x/.toml").has_value());
    CHECK_FALSE(parse_vm_config(kLeast, "/x/web1.conf").has_value());
    CHECK(parse_vm_config(kLeast, "/x/web1.eu-2.toml").value().name == "web1.eu-2");
}

TEST_CASE("a file is loaded from disk, and a missing one names itself") {
    const TestFolder folder;
    const auto config =
        load_vm_config(folder.write("web1.toml", "[machine]\nkernel = \"k\"\n[[memory]]\nsize = \"16M\"\n"));
    REQUIRE(config.has_value());
    CHECK(config->kernel == folder.file("k"));
    const auto missing = load_vm_config(folder.file("no.toml"));
    REQUIRE_FALSE(missing.has_value());
    CHECK(missing.error().message == "open " + folder.file("no.toml") + ": No such file or directory");
    CHECK_FALSE(load_vm_config(folder.write("big.toml", std::string((1 << 20) + 1, '#'))).has_value());
}

TEST_CASE("disks are read in their order, with as many queues as there are vCPUs") {
    const auto config = parse_vm_config(R"(
[machine]
kernel = "k"
vcpus = 3
[[memory]]
size = "64M"
[[disk]]
path = "a.img"
[[disk]]
path = "/dev/b"
read_only = true
direct = false
serial = "B"
queues = 1
)",
        "/etc/vms/web.toml");
    REQUIRE_MESSAGE(config.has_value(), (config ? "" : config.error().message));
    REQUIRE(config->disks.size() == 2);
    CHECK(config->disks[0].path == "/etc/vms/a.img");
    CHECK(config->disks[0].queues == 3);
    CHECK(config->disks[0].direct);
    CHECK_FALSE(config->disks[0].read_only);
    CHECK(config->disks[1].path == "/dev/b");
    CHECK(config->disks[1].queues == 1);
    CHECK(config->disks[1].read_only);
    CHECK_FALSE(config->disks[1].direct);
    CHECK(config->disks[1].serial == "B");
}

TEST_CASE("disks that cannot be are complained of") {
    const auto config = parse_vm_config(R"(
[machine]
kernel = "k"
[[memory]]
size = "64M"
[[disk]]
serial = "123456789012345678901"
[[disk]]
path = "x"
queues = 17
readonly = true
)",
        "/etc/vms/web.toml");
    REQUIRE_FALSE(config);
    for (const char* word :
        {"'path' is missing in [[disk]]", "more than 20 bytes", "'queues'", "'read_only'"})
        CHECK_MESSAGE(config.error().message.find(word) != std::string::npos, config.error().message);
}

namespace {

const std::string kQemu = "[vmm]\ndriver = \"qemu\"\n[[memory]]\nsize = \"512M\"\n";

} // namespace

TEST_CASE("the least file of a QEMU guest has every default") {
    const VmConfig config = good(kQemu);
    CHECK(config.driver == DriverKind::kQemu);
    CHECK(config.vmm_binary == kDefaultQemuBinary);
    CHECK(config.qemu.machine == "q35");
    CHECK(config.qemu.cpu == "host");
    CHECK(config.qemu.accel == "kvm");
    CHECK(config.qemu.extra_args.empty());
    CHECK(config.kernel.empty()); // it starts from its disk
    CHECK(good(kLeast).driver == DriverKind::kNative);
}

TEST_CASE("a full file of a QEMU guest is read whole") {
    const VmConfig config = good(kQemu + R"([qemu]
machine = "q35,smm=off"
cpu = "EPYC"
accel = "tcg"
vnc = "127.0.0.1:1,share=ignore"
extra_args = ["-device", "pvpanic"]
[[disk]]
path = "a.qcow2"
format = "qcow2"
[[net]]
type = "user"
hostfwd = ["tcp:127.0.0.1:2222-:22", "udp::5353-10.0.2.16:53"]
[[net]]
tap = "tap0"
)");
    CHECK(config.qemu.machine == "q35,smm=off");
    CHECK(config.qemu.cpu == "EPYC");
    CHECK(config.qemu.accel == "tcg");
    CHECK(config.qemu.vnc == VncConfig{"", "127.0.0.1", 5901, "share=ignore"});
    CHECK(config.qemu.extra_args == std::vector<std::string>{"-device", "pvpanic"});
    CHECK(config.disks.at(0).format == DiskFormat::kQcow2);
    CHECK(config.nets.at(0).type == NetType::kUser);
    CHECK(config.nets.at(0).hostfwd == std::vector<HostForward>{{Transport::kTcp, "127.0.0.1", 2222, "", 22},
                                           {Transport::kUdp, "", 5353, "10.0.2.16", 53}});
    CHECK(config.nets.at(1).type == NetType::kTap);
}

TEST_CASE("what one kind of VMM has and the other has not is complained of") {
    CHECK(errors_of(kQemu + "[machine]\ncpu_template = \"x\"\n") ==
          "6:16: 'cpu_template' in [machine] is not for driver 'qemu'; leave it out");
    CHECK(errors_of(kQemu + "[update]\nrehearse = \"never\"\n") ==
          "6:12: 'rehearse' in [update] is not for driver 'qemu'; leave it out");
    CHECK(errors_of(kQemu + "[debug]\nwitness = true\n") ==
          "6:11: 'witness' in [debug] is not for driver 'qemu'; leave it out");
    CHECK(errors_of(kQemu + "[[memory]]\nsize = \"16M\"\n") ==
          "3:1: more than one [[memory]] block; driver 'qemu' takes one");
    CHECK(errors_of(kQemu + "[console]\ntype = \"socket\"\n") ==
          "6:8: 'type' in [console] is 'socket', which driver 'qemu' has not; write 'pty'");
    CHECK(errors_of(kQemu + "[[net]]\ntap = \"t\"\nqueues = 2\n") ==
          "7:10: 'queues' in [[net]] is 2; write an integer from 1 to 1");
    CHECK(error_with("[qemu]\ncpu = \"host\"\n") ==
          "6:7: 'cpu' in [qemu] is not for driver 'native'; leave it out");
    CHECK(error_with("[[disk]]\npath = \"d\"\nformat = \"qcow2\"\n") ==
          "7:10: 'format' in [[disk]] is not for driver 'native'; leave it out");
    CHECK(error_with("[[net]]\ntype = \"user\"\ntap = \"t\"\n") ==
          "6:8: 'type' in [[net]] is not for driver 'native'; leave it out");
}

TEST_CASE("the [qemu] section is checked") {
    CHECK(errors_of(kQemu + "[qemu]\nmachine = \",smm=off\"\n") ==
          "6:11: 'machine' in [qemu] is ',smm=off'; write a machine type first, for example \"q35\"");
    for (const std::string machine :
        {"q35,kernel-irqchip=split", "q35,kernel_irqchip=split,smm=off", "microvm,ioapic2=on"}) {
        const std::string toml = kQemu + "[qemu]\nmachine = \"" + machine + "\"\n";
        CHECK(errors_of(toml) == "6:11: 'machine' in [qemu] is '" + machine +
                                     "', which has its IOAPIC in QEMU: an interrupt that is being served "
                                     "would never end after an update; write kernel-irqchip=on");
        CHECK(parse_vm_config(toml + "accel = \"tcg\"\n", "/etc/vms/web1.toml").has_value());
    }
    CHECK(errors_of(kQemu + "[qemu]\nmachine = \"q35,memory-backend=x\"\n") ==
          "6:11: 'machine' in [qemu] names a memory-backend; RAM is what [[memory]] says");
    CHECK(errors_of(kQemu + "[qemu]\naccel = \"xen\"\n") ==
          "6:9: 'accel' in [qemu] is 'xen'; write 'kvm' or 'tcg'");
    CHECK(errors_of(kQemu + "[qemu]\nextra_args = \"-snapshot\"\n") ==
          "6:14: 'extra_args' in [qemu] is a string; write an array of strings");
    CHECK(
        errors_of(kQemu + "[qemu]\nextra_args = [\"-vnc\", \":1\"]\n") ==
        "6:14: '-vnc' in 'extra_args' would listen where the next QEMU is to; write vnc = \"127.0.0.1:1\" in "
        "its place");
    CHECK(errors_of(kQemu + "[qemu]\nvnc = \"x\"\n") ==
          "6:7: 'vnc' in [qemu] is 'x'; write \"HOST:DISPLAY\", for example \"127.0.0.1:1\", or "
          "\"unix:PATH\" with an absolute path");
    CHECK(errors_of(kQemu + "[qemu]\nvnc = \":1,to=9\"\n") ==
          "6:7: 'vnc' in [qemu] is ':1,to=9', which has the option 'to', which an update cannot carry over; "
          "leave it out");
    CHECK(errors_of(kQemu + "[qemu]\nextra_args = [5]\n").find("strings in it only") != std::string::npos);
}

TEST_CASE("ports are forwarded to user networks, each place once") {
    const std::string user = kQemu + "[[net]]\ntype = \"user\"\n";
    CHECK(errors_of(user + "hostfwd = [\"tcp::22\"]\n") ==
          "7:11: 'hostfwd' in [[net]] has 'tcp::22'; write \"PROTOCOL:[HOST]:PORT-[GUEST]:PORT\" with tcp or "
          "udp, IPv4 addresses and ports from 1 to 65535, for example \"tcp:127.0.0.1:2222-:22\"");
    CHECK(
        errors_of(user + "hostfwd = [\"tcp::2222-:22\", \"tcp:0.0.0.0:2222-:23\"]\n") ==
        "7:11: 'hostfwd' in [[net]] has 'tcp:0.0.0.0:2222-:23', a place that is forwarded already; leave one "
        "out");
    CHECK(errors_of(user + "hostfwd = [\"tcp::2222-:22\"]\n[[net]]\ntype = \"user\"\nhostfwd = "
                           "[\"tcp::2222-:22\"]\n")
              .starts_with("10:11: 'hostfwd' in [[net]] has 'tcp::2222-:22', a place"));
    CHECK(errors_of(kQemu + "[[net]]\ntap = \"t\"\nhostfwd = [\"tcp::2222-:22\"]\n") ==
          "7:11: 'hostfwd' in [[net]] is for type 'user'; leave it out");
    CHECK(errors_of(user + "hostfwd = \"tcp::2222-:22\"\n").find("write an array of strings") !=
          std::string::npos);
    CHECK(error_with("[[net]]\ntap = \"t\"\nhostfwd = []\n") ==
          "7:11: 'hostfwd' in [[net]] is not for driver 'native'; leave it out");
}

TEST_CASE("private RAM is QEMU's alone, and lies in no folder") {
    CHECK(parse_vm_config(
              "[vmm]\ndriver = \"qemu\"\n[[memory]]\nsize = \"64M\"\nbacking = \"private\"\n", "/vms/a.toml")
              ->memory.front()
              .backing == Backing::kPrivate);
    CHECK(error_with("backing = \"private\"\n") ==
          "5:11: 'backing' in [[memory]] is 'private', which only driver 'qemu' has; leave it out");
}

TEST_CASE("a command line says all of a guest, and nothing stands beside it") {
    const std::string adopted =
        "[vmm]\ndriver = \"qemu\"\n[[memory]]\nsize = \"64M\"\n[console]\ntype = \"none\"\n"
        "[qemu]\ncommand_line = [\"-m\", \"64\"]\n";
    const auto config = parse_vm_config(adopted, "/vms/a.toml");
    REQUIRE_MESSAGE(config, config.error().message);
    CHECK(config->qemu.command_line == std::vector<std::string>{"-m", "64"});
    for (const char* more : {"cpu = \"host\"\n", "[[disk]]\npath = \"d\"\n", "[[net]]\ntap = \"t\"\n",
             "[machine]\nkernel = \"k\"\n"}) {
        const auto refused = parse_vm_config(adopted + more, "/vms/a.toml");
        REQUIRE(!refused);
        CHECK_MESSAGE(refused.error().message.find("beside 'command_line'") != std::string::npos,
            refused.error().message);
    }
}
