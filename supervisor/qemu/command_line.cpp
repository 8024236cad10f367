#include "supervisor/qemu/command_line.hpp"

#include <nlohmann/json.hpp>

#include "supervisor/qemu/descriptors.hpp"
#include "supervisor/qemu/vnc.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

using nlohmann::json;

const std::string kGenerationDevice = "vmgenid";

class CommandLine {
public:
    void add(const std::string& option) { all_.push_back(option); }
    void add(const std::string& option, const std::string& value) {
        all_.push_back(option);
        all_.push_back(value);
    }
    void add(const std::string& option, const json& value) { add(option, value.dump()); }
    std::vector<std::string> take() { return std::move(all_); }

private:
    std::vector<std::string> all_;
};

// microvm has no PCI by default: its virtio devices sit on MMIO.
std::string virtio(const std::string& kind, const std::string& machine_type) {
    return "virtio-" + kind + (machine_type == "microvm" ? "-device" : "-pci");
}

void add_ram(const VmConfig& config, RamMapping mapping, CommandLine& line) {
    if (config.memory.front().backing == Backing::kPrivate)
        return line.add("-object",
            json{{"qom-type", "memory-backend-ram"}, {"id", kRamId}, {"size", config.memory_bytes()}});
    line.add(
        "-object", json{{"qom-type", "memory-backend-file"}, {"id", kRamId}, {"size", config.memory_bytes()},
                       {"share", mapping == RamMapping::kShared}, {"mem-path", ram_path()}});
}

void add_disks(const VmConfig& config, const std::string& machine_type, CommandLine& line) {
    for (size_t i = 0; i < config.disks.size(); ++i) {
        const DiskConfig& disk = config.disks[i];
        const std::string id = "disk" + std::to_string(i);
        line.add("-blockdev",
            json{{"driver", "file"}, {"node-name", id + "-file"}, {"filename", disk.path},
                {"read-only", disk.read_only}, {"discard", "unmap"}, {"cache", {{"direct", disk.direct}}}});
        line.add("-blockdev",
            json{{"driver", to_string(disk.format)}, {"node-name", id}, {"file", id + "-file"},
                {"read-only", disk.read_only}, {"discard", "unmap"}, {"cache", {{"direct", disk.direct}}}});
        line.add(
            "-device", json{{"driver", virtio("blk", machine_type)}, {"id", id + "-device"}, {"drive", id},
                           {"serial", disk.serial.empty() ? id : disk.serial}, {"num-queues", disk.queues}});
    }
}

void add_nets(const VmConfig& config, const std::string& machine_type, CommandLine& line) {
    for (size_t i = 0; i < config.nets.size(); ++i) {
        const NetConfig& card = config.nets[i];
        const std::string id = netdev_id(i);
        if (card.type == NetType::kUser)
            line.add("-netdev", user_network(id));
        else
            line.add("-netdev", json{{"type", "tap"}, {"id", id}, {"vhost", false},
                                    {"fd", std::to_string(kFirstNetFd + static_cast<int>(i))}});
        json device = {{"driver", virtio("net", machine_type)}, {"id", id + "-device"}, {"netdev", id},
            {"mac", to_string(card.mac)}};
        line.add("-device", device);
    }
}

void add_console(const VmConfig& config, const std::string& machine_type, CommandLine& line) {
    if (config.console == ConsoleType::kNone) return line.add("-serial", std::string("none"));
    line.add("-add-fd", console_fds());
    line.add("-chardev", std::string("null,id=") + kConsoleId);
    if (config.console_device == ConsoleDevice::kSerial)
        return line.add("-serial", std::string("chardev:") + kConsoleId);
    line.add("-serial", std::string("none"));
    line.add("-device", virtio("serial", machine_type));
    line.add("-device", std::string("virtconsole,chardev=") + kConsoleId);
}

// QEMU's microvm has, unless it is told otherwise, two IOAPICs of its own before the kernel's local APICs.
// The end of a level-triggered interrupt that is being served when the guest moves does not reach them: the
// pin keeps its Remote IRR bit, and its device never interrupts again (seen with 7.2). KVM's own IOAPIC is
// moved whole.
std::string with_kernel_ioapic(const VmConfig& config) {
    const std::string& machine = config.qemu.machine;
    if (config.qemu.accel != "kvm" || machine_type_of(machine) != "microvm") return {};
    std::string options;
    if (machine.find(",ioapic2=") == std::string::npos) options += ",ioapic2=off";
    if (machine.find(",kernel-irqchip=") == std::string::npos &&
        machine.find(",kernel_irqchip=") == std::string::npos)
        options += ",kernel-irqchip=on";
    return options;
}

} // namespace

std::string netdev_id(size_t card) {
    return "net" + std::to_string(card);
}

std::string user_network(const std::string& id) {
    return json{{"type", "user"}, {"id", id}}.dump();
}

std::string console_fds() {
    return "fd=" + std::to_string(kConsoleFd) + ",set=1";
}

std::string ram_path() {
    return "/proc/self/fd/" + std::to_string(kRamFd);
}

std::string machine_type_of(const std::string& machine) {
    return machine.substr(0, machine.find(','));
}

std::vector<std::string> guest_arguments(
    const VmConfig& config, const std::string& machine_type, RamMapping mapping) {
    CommandLine line;
    const std::string size = std::to_string(config.memory_bytes());
    line.add("-name", config.name);
    line.add("-nodefaults");
    line.add("-no-user-config");
    line.add("-no-shutdown"); // the supervisor decides what the end of a guest is
    line.add("-display", std::string("none"));
    if (config.qemu.vnc) line.add("-vnc", vnc_option(*config.qemu.vnc));
    add_ram(config, mapping, line);
    line.add("-machine", machine_type +
                             config.qemu.machine.substr(machine_type_of(config.qemu.machine).size()) +
                             with_kernel_ioapic(config) + ",memory-backend=" + kRamId);
    line.add("-accel", config.qemu.accel);
    line.add("-cpu", config.qemu.cpu);
    line.add("-smp", std::to_string(config.vcpus));
    line.add("-m", size + "B");
    if (!config.kernel.empty()) line.add("-kernel", config.kernel);
    if (!config.initrd.empty()) line.add("-initrd", config.initrd);
    if (!config.cmdline.empty()) line.add("-append", config.cmdline);
    if (!config.firmware.empty()) line.add("-bios", config.firmware);
    const std::string type = machine_type_of(machine_type);
    add_console(config, type, line);
    add_disks(config, type, line);
    add_nets(config, type, line);
    if (config.rng) line.add("-device", virtio("rng", type));
    return line.take();
}

bool set_generation(std::vector<std::string>& arguments, const std::string& uuid) {
    bool found = false;
    for (size_t i = 0; i + 1 < arguments.size(); ++i) {
        std::string& value = arguments[i + 1];
        if (arguments[i] != "-device") continue;
        auto device = json::parse(value, nullptr, false);
        if (device.is_object() && device.value("driver", "") == kGenerationDevice) {
            device["guid"] = uuid;
            value = device.dump();
        } else if (value == kGenerationDevice || value.starts_with(kGenerationDevice + ",")) {
            value += ",guid=" + uuid; // the last one counts
        } else {
            continue;
        }
        found = true;
    }
    return found;
}

bool maps_ram_privately(const std::vector<std::string>& arguments) {
    for (size_t i = 0; i + 1 < arguments.size(); ++i) {
        if (arguments[i] != "-object") continue;
        const auto object = json::parse(arguments[i + 1], nullptr, false);
        if (object.is_object() && object.value("mem-path", "") == ram_path())
            return !object.value("share", false);
    }
    return false;
}

} // namespace liveupdate::supervisor::qemu
