#include "supervisor/config.hpp"

#include <algorithm>
#include <array>
#include <filesystem>
#include <numeric>

#include "handoff/base/fd.hpp"
#include "handoff/channel.hpp"
#include "supervisor/config_reader.hpp"
#include "supervisor/paths.hpp"
#include "supervisor/units.hpp"

namespace liveupdate::supervisor {
namespace {

using namespace std::chrono_literals;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kLeastMemory = 16 * kMiB;
constexpr uint64_t kMostMemory = uint64_t{16} << 40; // of one block; below any guest physical address width
constexpr size_t kMostBlocks = 30;       // a manifest has 32, with the firmware and the witness page
constexpr size_t kLongestCmdline = 2047; // Linux, x86: COMMAND_LINE_SIZE with its NUL
constexpr size_t kMostDisks = 8;
constexpr unsigned kMostDiskQueues = 16;
constexpr size_t kLongestSerial = 20; // VIRTIO_BLK_ID_BYTES
constexpr size_t kMostCards = 8;
constexpr unsigned kMostQueues = 16; // of all cards: each is a descriptor in every message that has them
// Beside those: firmware, witness page, baton, /dev/kvm, two of the console, the transfer area and the
// source's pidfd.
constexpr size_t kOtherDescriptors = 8;
static_assert(kMostBlocks + kMostDisks + kMostQueues + kOtherDescriptors <= handoff::Channel::kMaxFds,
    "the largest VM must be given to a destination in one message");
constexpr size_t kLongestDevice = 15; // Linux: IFNAMSIZ with its NUL
constexpr size_t kMostDevices = 14;   // interrupts that the VMM has for virtio devices
constexpr size_t kLongestFile = size_t{1} << 20;

constexpr std::array<std::string_view, 5> kBackings = {"memfd", "tmpfs", "hugetlbfs", "private", "file"};
constexpr std::array<std::string_view, 4> kConsoleTypes = {"pty", "file", "socket", "none"};
constexpr std::array<std::string_view, 2> kConsoleDevices = {"serial", "virtio"};
constexpr std::array<std::string_view, 3> kRehearse = {"always", "plan", "never"};
constexpr std::array<std::string_view, 2> kOnLost = {"stop", "restart"};
constexpr std::array<std::string_view, 2> kDrivers = {"native", "qemu"};
constexpr std::array<std::string_view, 2> kFormats = {"raw", "qcow2"};
constexpr std::array<std::string_view, 2> kNetTypes = {"tap", "user"};

template <size_t N>
std::vector<std::string_view> words(const std::array<std::string_view, N>& all) {
    return {all.begin(), all.end()};
}

bool is_qemu(const VmConfig& config) {
    return config.driver == DriverKind::kQemu;
}

void read_vmm(Section vmm, const std::string& folder, VmConfig& config) {
    vmm.choice("driver", words(kDrivers), config.driver);
    if (is_qemu(config)) config.vmm_binary = kDefaultQemuBinary;
    vmm.path("binary", folder, config.vmm_binary);
    vmm.finish();
}

void read_machine(Section machine, const std::string& folder, VmConfig& config) {
    machine.integer("vcpus", 1, 64, config.vcpus);
    if (is_qemu(config))
        machine.not_for("qemu", {"cpu_template"});
    else
        machine.string("cpu_template", config.cpu_template);
    machine.path("kernel", folder, config.kernel);
    machine.path("initrd", folder, config.initrd);
    machine.path("firmware", folder, config.firmware);
    machine.string("cmdline", config.cmdline);
    machine.boolean("rng", config.rng);
    if (machine.has("kernel") && machine.has("firmware"))
        machine.complain(
            "firmware", "both 'kernel' and 'firmware' in [machine]; keep the one the guest starts from");
    if (!is_qemu(config) && !machine.has("kernel") && !machine.has("firmware"))
        machine.complain(
            "", "neither 'kernel' nor 'firmware' in [machine]; write what the guest starts from");
    const bool other = machine.has("firmware") || is_qemu(config);
    for (const char* key : {"cmdline", "initrd"})
        if (machine.has(key) && other && !machine.has("kernel"))
            machine.complain(key, "'" + std::string(key) +
                                      "' in [machine] is for a 'kernel', not for 'firmware'; leave it out");
    if (config.cmdline.size() > kLongestCmdline)
        machine.complain("cmdline", "'cmdline' in [machine] has " + std::to_string(config.cmdline.size()) +
                                        " bytes; a kernel takes " + std::to_string(kLongestCmdline));
    if (config.cpu_template.empty())
        machine.complain(
            "cpu_template", "'cpu_template' in [machine] is empty; write its name, or leave it out");
    machine.finish();
}

// Whether "q35,smm=off" sets this option to this value.
bool has_option(const std::string& machine, const std::string& name, const std::string& value) {
    return (machine + ",").find("," + name + "=" + value + ",") != std::string::npos;
}

void read_vnc(Section& qemu, VmConfig& config) {
    if (!qemu.has("vnc")) return;
    std::string text;
    qemu.string("vnc", text);
    auto vnc = parse_vnc(text);
    if (vnc) return void(config.qemu.vnc = std::move(*vnc));
    const bool elsewhere = vnc.error().message.starts_with("has ");
    qemu.complain(
        "vnc", "'vnc' in [qemu] is '" + text + "'" + (elsewhere ? ", which " : "; ") + vnc.error().message);
}

void read_qemu(Section qemu, VmConfig& config) {
    if (!is_qemu(config))
        return qemu.not_for("native", {"machine", "cpu", "accel", "vnc", "extra_args", "command_line"});
    qemu.string("machine", config.qemu.machine);
    qemu.string("cpu", config.qemu.cpu);
    qemu.string("accel", config.qemu.accel);
    read_vnc(qemu, config);
    qemu.strings("extra_args", config.qemu.extra_args);
    qemu.strings("command_line", config.qemu.command_line);
    if (std::find(config.qemu.extra_args.begin(), config.qemu.extra_args.end(), "-vnc") !=
        config.qemu.extra_args.end())
        qemu.complain("extra_args", "'-vnc' in 'extra_args' would listen where the next QEMU is to; write "
                                    "vnc = \"127.0.0.1:1\" in its "
                                    "place");
    if (qemu.has("command_line"))
        for (const char* key : {"machine", "cpu", "accel", "vnc", "extra_args"})
            if (qemu.has(key))
                qemu.complain(
                    key, "'" + std::string(key) + "' in [qemu] beside 'command_line', which is all of it");
    const std::string type = config.qemu.machine.substr(0, config.qemu.machine.find(','));
    if (type.empty() || type.find('=') != std::string::npos)
        qemu.complain("machine", "'machine' in [qemu] is '" + config.qemu.machine +
                                     "'; write a machine type first, for example \"q35\"");
    if (config.qemu.machine.find("memory-backend") != std::string::npos)
        qemu.complain("machine", "'machine' in [qemu] names a memory-backend; RAM is what [[memory]] says");
    const bool own_ioapic = has_option(config.qemu.machine, "ioapic2", "on") ||
                            has_option(config.qemu.machine, "kernel-irqchip", "split") ||
                            has_option(config.qemu.machine, "kernel_irqchip", "split");
    if (own_ioapic && config.qemu.accel == "kvm")
        qemu.complain("machine", "'machine' in [qemu] is '" + config.qemu.machine +
                                     "', which has its IOAPIC in QEMU: an interrupt that is being served "
                                     "would never end after an update; write kernel-irqchip=on");
    if (config.qemu.accel != "kvm" && config.qemu.accel != "tcg")
        qemu.complain("accel", "'accel' in [qemu] is '" + config.qemu.accel + "'; write 'kvm' or 'tcg'");
    if (config.qemu.cpu.empty())
        qemu.complain("cpu", "'cpu' in [qemu] is empty; write a model, or leave it out");
    qemu.finish();
}

void read_directory(Section& block, const std::string& folder, MemoryConfig& memory) {
    block.path("directory", folder, memory.directory);
    if (memory.backing == Backing::kTmpfs || memory.backing == Backing::kHugetlbfs) {
        if (memory.directory.empty())
            memory.directory = memory.backing == Backing::kTmpfs ? "/dev/shm" : "/dev/hugepages";
    } else if (memory.backing == Backing::kFile) {
        if (memory.directory.empty())
            block.complain("directory",
                "'directory' is missing in [[memory]]; backing 'file' needs it: write a "
                "folder on a disk");
    } else if (block.has("directory")) {
        block.complain("directory",
            "'directory' in [[memory]] is for backing 'tmpfs', 'hugetlbfs' or 'file'; "
            "other RAM lies in no folder");
    }
}

MemoryConfig read_block(Section block, const std::string& folder, const VmConfig& config) {
    MemoryConfig memory;
    const bool sized = block.size("size", memory.size);
    block.choice("backing", words(kBackings), memory.backing);
    if (!is_qemu(config) && memory.backing == Backing::kPrivate)
        block.complain(
            "backing", "'backing' in [[memory]] is 'private', which only driver 'qemu' has; leave it out");
    read_directory(block, folder, memory);
    const uint64_t page = memory.backing == Backing::kHugetlbfs ? 2 * kMiB : 4096;
    if (!block.has("size"))
        block.complain("", "'size' is missing in [[memory]]; write for example size = \"512M\"");
    else if (sized && (memory.size == 0 || memory.size % page != 0))
        block.complain("size", "'size' in [[memory]] is " + std::to_string(memory.size) + " bytes; " +
                                   std::string(to_string(memory.backing)) + " needs a multiple of " +
                                   exact_size(page));
    else if (memory.size > kMostMemory)
        block.complain(
            "size", "'size' in [[memory]] is more than " + exact_size(kMostMemory) + "; write less");
    if (memory.size % page != 0 || memory.size > kMostMemory) memory.size = 0; // not to be added up
    block.finish();
    return memory;
}

void read_memory(Section& top, Complaints& complaints, const std::string& folder, VmConfig& config) {
    const auto blocks = top.tables("memory");
    if (blocks.empty() && !top.has("memory"))
        return top.complain("memory", "[[memory]] is missing; write one with for example size = \"512M\"");
    if (blocks.size() > kMostBlocks)
        return top.complain(
            "memory", "more than " + std::to_string(kMostBlocks) + " [[memory]] blocks; join some");
    for (const toml::table* block : blocks)
        config.memory.push_back(read_block(Section(complaints, "[[memory]]", block), folder, config));
    if (is_qemu(config) && blocks.size() > 1)
        top.complain("memory", "more than one [[memory]] block; driver 'qemu' takes one");
    const bool all_sized = std::all_of(
        config.memory.begin(), config.memory.end(), [](const MemoryConfig& m) { return m.size > 0; });
    if (!blocks.empty() && all_sized && config.memory_bytes() < kLeastMemory)
        top.complain("memory", "[[memory]] is " + human_size(config.memory_bytes()) +
                                   " in sum; a guest needs at least " + human_size(kLeastMemory));
}

DiskConfig read_disk(Section table, const std::string& folder, const VmConfig& config) {
    DiskConfig disk;
    disk.queues = std::min<unsigned>(config.vcpus, kMostDiskQueues);
    if (is_qemu(config))
        table.choice("format", words(kFormats), disk.format);
    else
        table.not_for("native", {"format"});
    table.path("path", folder, disk.path);
    table.boolean("read_only", disk.read_only);
    table.boolean("direct", disk.direct);
    table.string("serial", disk.serial);
    table.integer("queues", 1, kMostDiskQueues, disk.queues);
    if (!table.has("path"))
        table.complain("", "'path' is missing in [[disk]]; write the file or block device that it is");
    const bool printable =
        std::all_of(disk.serial.begin(), disk.serial.end(), [](char c) { return c >= 0x20 && c <= 0x7e; });
    if (disk.serial.size() > kLongestSerial || !printable)
        table.complain(
            "serial", "'serial' in [[disk]] has more than 20 bytes, or some that cannot be printed");
    table.finish();
    return disk;
}

void read_disks(Section& top, Complaints& complaints, const std::string& folder, VmConfig& config) {
    const auto tables = top.tables("disk");
    if (tables.size() > kMostDisks)
        return top.complain("disk", "more than " + std::to_string(kMostDisks) + " [[disk]]s; leave some out");
    for (const toml::table* table : tables)
        config.disks.push_back(read_disk(Section(complaints, "[[disk]]", table), folder, config));
}

void read_tap(Section& net, NetConfig& card) {
    net.string("tap", card.tap);
    if (!net.has("tap"))
        return net.complain("", "'tap' is missing in [[net]]; write the name of a tap device of this host");
    if (card.tap.empty() || card.tap.size() > kLongestDevice || card.tap == "." || card.tap == ".." ||
        card.tap.find_first_of("/: \t\n%") != std::string::npos)
        net.complain("tap", "'tap' in [[net]] is '" + card.tap + "', which is no network device's name");
}

bool is_forwarded(const std::vector<HostForward>& forwards, const HostForward& wanted) {
    return std::any_of(forwards.begin(), forwards.end(),
        [&](const HostForward& each) { return at_same_place(each, wanted); });
}

void read_hostfwd(Section& net, const VmConfig& config, NetConfig& card) {
    std::vector<std::string> all;
    net.strings("hostfwd", all);
    for (const std::string& text : all) {
        const auto forward = parse_host_forward(text);
        const std::string what = "'hostfwd' in [[net]] has '" + text + "'";
        if (!forward) {
            net.complain("hostfwd", what + "; " + forward.error().message);
            continue;
        }
        bool taken = is_forwarded(card.hostfwd, *forward);
        for (const NetConfig& other : config.nets)
            taken = taken || is_forwarded(other.hostfwd, *forward);
        if (taken) net.complain("hostfwd", what + ", a place that is forwarded already; leave one out");
        card.hostfwd.push_back(*forward);
    }
}

NetConfig read_card(Section net, const VmConfig& config) {
    NetConfig card;
    if (is_qemu(config)) {
        net.choice("type", words(kNetTypes), card.type);
        read_hostfwd(net, config, card);
    } else {
        net.not_for("native", {"type", "hostfwd"});
    }
    if (card.type == NetType::kTap && !card.hostfwd.empty())
        net.complain("hostfwd", "'hostfwd' in [[net]] is for type 'user'; leave it out");
    if (card.type == NetType::kTap)
        read_tap(net, card);
    else if (net.has("tap") || net.has("queues"))
        net.complain(net.has("tap") ? "tap" : "queues",
            "'tap' and 'queues' in [[net]] are for type 'tap'; leave them out");
    card.mac = default_mac(config.name, static_cast<unsigned>(config.nets.size()));
    std::string mac;
    net.string("mac", mac);
    if (net.has("mac")) {
        auto parsed = parse_mac(mac);
        if (parsed)
            card.mac = *parsed;
        else
            net.complain("mac", "'mac' in [[net]]: " + parsed.error().message);
    }
    net.integer("queues", 1, is_qemu(config) ? 1 : 8, card.queues);
    for (const NetConfig& other : config.nets) {
        if (!card.tap.empty() && other.tap == card.tap)
            net.complain(
                "tap", "'tap' in [[net]] is '" + card.tap + "' for the second time; one card has it");
        if (other.mac == card.mac)
            net.complain("mac", "'mac' in [[net]] is another card's too: " + to_string(card.mac));
    }
    net.finish();
    return card;
}

void read_nets(Section& top, Complaints& complaints, VmConfig& config) {
    const auto sections = top.tables("net");
    if (sections.size() > kMostCards)
        return top.complain(
            "net", "more than " + std::to_string(kMostCards) + " [[net]]; a guest has no more");
    unsigned queues = 0;
    for (const toml::table* section : sections) {
        config.nets.push_back(read_card(Section(complaints, "[[net]]", section), config));
        queues += config.nets.back().queues;
    }
    if (queues > kMostQueues)
        top.complain("net", "[[net]] have " + std::to_string(queues) + " queues in sum; write at most " +
                                std::to_string(kMostQueues));
}

void read_console(Section console, const std::string& folder, VmConfig& config) {
    console.choice("type", words(kConsoleTypes), config.console);
    console.choice("device", words(kConsoleDevices), config.console_device);
    console.path("path", folder, config.console_path);
    if (config.console == ConsoleType::kFile && !console.has("path"))
        console.complain("type", "'path' is missing in [console]; type 'file' needs it");
    if (is_qemu(config) && config.console == ConsoleType::kSocket)
        console.complain("type", "'type' in [console] is 'socket', which driver 'qemu' has not; write 'pty'");
    if (config.console != ConsoleType::kFile && console.has("path"))
        console.complain("path", "'path' in [console] is for type 'file' only; leave it out");
    console.finish();
}

// Native guests only: QEMU's machine types have places of their own.
void check_devices(Section& top, const VmConfig& config) {
    const size_t console = config.console_device == ConsoleDevice::kVirtio ? 1 : 0;
    const size_t rng = config.rng ? 1 : 0;
    const size_t count = config.disks.size() + config.nets.size() + console + rng;
    if (is_qemu(config) || count <= kMostDevices) return;
    top.complain(config.nets.empty() ? "disk" : "net",
        std::to_string(config.disks.size()) + " [[disk]]s, " + std::to_string(config.nets.size()) +
            " [[net]]s" + (rng != 0 ? ", the source of entropy ('rng')" : "") +
            (console != 0 ? ", the virtio console" : "") + " are " + std::to_string(count) +
            " devices; a guest has at most " + std::to_string(kMostDevices) + ", so leave some out");
}

void check_command_line(Section& top, const VmConfig& config) {
    if (config.qemu.command_line.empty()) return;
    for (const char* key : {"disk", "net"})
        if (top.has(key))
            top.complain(
                key, "[[" + std::string(key) + "]] beside 'command_line' in [qemu], which says it all");
    if (config.console != ConsoleType::kNone)
        top.complain("console",
            "the guest of a 'command_line' in [qemu] has no [console] here; write type = \"none\"");
    if (!config.kernel.empty() || !config.firmware.empty())
        top.complain("machine",
            "'kernel' or 'firmware' in [machine] beside 'command_line' in [qemu], which says it all");
}

void read_update(Section update, VmConfig& config) {
    if (is_qemu(config))
        update.not_for("qemu", {"rehearse", "populate"});
    else {
        update.choice("rehearse", words(kRehearse), config.rehearse);
        update.boolean("populate", config.populate);
    }
    update.duration("probation", 0us, 1h, config.probation);
    update.duration("blackout_limit", 1ms, 60s, config.blackout_limit);
    update.duration("timeout", 100ms, 1h, config.timeout);
    update.finish();
}

void read_policy(Section policy, VmConfig& config) {
    policy.choice("on_lost", words(kOnLost), config.on_lost);
    policy.duration("stop_timeout", 0us, 1h, config.stop_timeout);
    policy.string("owner", config.owner);
    policy.string("group", config.group);
    policy.finish();
}

void read_debug(Section debug, VmConfig& config) {
    if (is_qemu(config))
        debug.not_for("qemu", {"witness"});
    else
        debug.boolean("witness", config.witness);
    debug.finish();
}

} // namespace

std::string_view to_string(Backing backing) {
    return kBackings[static_cast<size_t>(backing)];
}
std::string_view to_string(ConsoleType type) {
    return kConsoleTypes[static_cast<size_t>(type)];
}
std::string_view to_string(ConsoleDevice device) {
    return kConsoleDevices[static_cast<size_t>(device)];
}
std::string_view to_string(Rehearse rehearse) {
    return kRehearse[static_cast<size_t>(rehearse)];
}
std::string_view to_string(OnLost on_lost) {
    return kOnLost[static_cast<size_t>(on_lost)];
}
std::string_view to_string(DriverKind driver) {
    return kDrivers[static_cast<size_t>(driver)];
}
std::string_view to_string(DiskFormat format) {
    return kFormats[static_cast<size_t>(format)];
}
std::string_view to_string(NetType type) {
    return kNetTypes[static_cast<size_t>(type)];
}

uint64_t VmConfig::memory_bytes() const {
    return std::accumulate(memory.begin(), memory.end(), uint64_t{0},
        [](uint64_t sum, const MemoryConfig& block) { return sum + block.size; });
}

Result<VmConfig> parse_vm_config(std::string_view toml, const std::string& path) {
    const std::filesystem::path file(path);
    if (file.extension() != ".toml")
        return Error(ErrorCode::kInvalid, path + ": a VM's file ends in .toml; rename it");
    VmConfig config;
    config.path = path;
    config.name = file.stem().string();
    TRY(check_vm_name(config.name).context(path));

    Complaints complaints(path);
    const auto parsed = toml::parse(toml, path);
    if (!parsed) {
        complaints.add(parsed.error().source().begin, parsed.error().description());
        return complaints.result().error();
    }
    const std::string folder = file.parent_path().string();
    const toml::table& root = parsed.table();
    Section top(complaints, "", &root);
    read_vmm(Section(complaints, "[vmm]", top.table("vmm")), folder, config);
    read_machine(Section(complaints, "[machine]", top.table("machine")), folder, config);
    read_qemu(Section(complaints, "[qemu]", top.table("qemu")), config);
    read_memory(top, complaints, folder, config);
    read_disks(top, complaints, folder, config);
    read_nets(top, complaints, config);
    read_console(Section(complaints, "[console]", top.table("console")), folder, config);
    check_devices(top, config);
    check_command_line(top, config);
    read_update(Section(complaints, "[update]", top.table("update")), config);
    read_policy(Section(complaints, "[policy]", top.table("policy")), config);
    read_debug(Section(complaints, "[debug]", top.table("debug")), config);
    top.finish();
    TRY(complaints.result());
    return config;
}

Result<VmConfig> load_vm_config(const std::string& path) {
    std::error_code problem;
    const std::string absolute = std::filesystem::absolute(path, problem).lexically_normal().string();
    if (problem) return Error(ErrorCode::kSystem, "find " + path + ": " + problem.message(), problem.value());
    TRY_ASSIGN(const std::string toml, fd::read_file(absolute, kLongestFile));
    return parse_vm_config(toml, absolute);
}

} // namespace liveupdate::supervisor
