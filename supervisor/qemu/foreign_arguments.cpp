#include "supervisor/qemu/foreign_arguments.hpp"

#include <string_view>

#include "supervisor/qemu/options.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

using std::string_view;

// Of one process, not of the guest.
constexpr std::array<string_view, 9> kDropped = {
    "-S", "-daemonize", "-qmp", "-qmp-pretty", "-monitor", "-mon", "-pidfile", "-incoming", "-loadvm"};
constexpr std::array<string_view, 14> kFiles = {"-kernel", "-initrd", "-bios", "-dtb", "-hda", "-hdb", "-hdc",
    "-hdd", "-cdrom", "-fda", "-fdb", "-pflash", "-readconfig", "-L"};
constexpr std::array<string_view, 5> kFileKeys = {"file", "filename", "path", "mem-path", "file.filename"};

bool names_descriptor(const std::string& value) {
    for (const string_view key : {"fd", "fds", "vhostfd", "vhostfds"})
        if (!value_of(value, key).empty()) return true;
    return contains(value, "/dev/fdset/") || contains(value, "/proc/self/fd/");
}

bool is_on_standard_output(const Option& option) {
    return option.value == "stdio" || option.value.starts_with("mon:stdio") ||
           (option.name == "-chardev" && option.value.starts_with("stdio"));
}

// See command_line.cpp: what is said here of a guest that others have started.
std::string own_ioapic(const Option& option) {
    const std::string& value = option.value;
    const bool split = value_of(value, "kernel-irqchip") == "split" ||
                       value_of(value, "kernel_irqchip") == "split" || value_of(value, "ioapic2") == "on";
    const std::string text = "," + value;
    const bool microvm = contains(text, ",microvm") || contains(text, "type=microvm");
    const bool kernels =
        value_of(value, "ioapic2") == "off" &&
        (value_of(value, "kernel-irqchip") == "on" || value_of(value, "kernel_irqchip") == "on");
    if (!split && (!microvm || kernels)) return {};
    return "leaves the IOAPIC to QEMU: an interrupt that is being served would never end after an update; "
           "start it with ioapic2=off (microvm) and kernel-irqchip=on";
}

// What goes wrong when a second QEMU has this option; empty when nothing does.
std::string obstacle(const Option& option) {
    const std::string& value = option.value;
    if (!is_understood(option))
        return "is not understood: the word before it may be an option without a value";
    if (option.name == "-machine" || option.name == "-M" || option.name == "-accel")
        if (std::string why = own_ioapic(option); !why.empty()) return why;
    if (std::string why = why_it_listens(option); !why.empty()) return why;
    if (option.name == "-add-fd" || names_descriptor(value))
        return "names a descriptor, which only this process has";
    if (is_on_standard_output(option)) return "is connected to the terminal that this QEMU was started from";
    if (contains(value, "vhost-user"))
        return "is connected to another process, which takes one QEMU at a time";
    if (option.name == "-snapshot" || value_of(value, "snapshot") == "on")
        return "writes to a file that only this process has";
    if (option.name == "-chroot") return "gives paths a meaning of their own";
    if (option.name == "-curses" ||
        (option.name == "-display" && value != "none" && !value.starts_with("egl-headless")))
        return "opens a display, which does not follow the guest";
    return {};
}

std::string relative_file(
    const Option& option, const std::function<bool(const std::string&)>& is_relative_file) {
    std::vector<std::string> candidates;
    if (is_one_of(kFiles, option.name)) candidates.push_back(option.value);
    for (const string_view key : kFileKeys)
        candidates.push_back(value_of(option.value, key));
    for (const std::string& path : candidates)
        if (!path.empty() && path.front() != '/' && is_relative_file(path)) return path;
    return {};
}

// "q35,smm=off" and "smm=off,type=q35" with the exact type.
std::string with_type(const std::string& machine, const std::string& type) {
    std::string rest;
    for (size_t begin = 0; begin <= machine.size();) {
        const size_t end = std::min(machine.find(',', begin), machine.size());
        const std::string part = machine.substr(begin, end - begin);
        const bool names_type = part.starts_with("type=") || (begin == 0 && !contains(part, "="));
        if (!names_type && !part.empty()) rest += "," + part;
        begin = end + 1;
    }
    return "type=" + type + rest;
}

} // namespace

ForeignArguments read_foreign_arguments(const std::vector<std::string>& arguments,
    const std::string& machine_type, const std::function<bool(const std::string&)>& is_relative_file) {
    ForeignArguments read;
    const std::vector<Option> all = options_of(arguments);
    std::vector<std::string> monitors; // character devices of monitors
    bool machine = false, serial = false, nographic = false;
    for (const Option& option : all) {
        if (option.name == "-mon") {
            const std::string named = value_of(option.value, "chardev");
            monitors.push_back(named.empty() ? option.value.substr(0, option.value.find(',')) : named);
        }
        serial = serial || option.name == "-serial";
        nographic = nographic || option.name == "-nographic";
    }
    for (Option option : all) {
        const bool of_a_monitor =
            option.name == "-chardev" &&
            std::find(monitors.begin(), monitors.end(), value_of(option.value, "id")) != monitors.end();
        if (is_one_of(kDropped, option.name) || of_a_monitor) continue;
        if (option.name == "-M" || option.name == "-machine") {
            option = {"-machine", with_type(option.value, machine_type), true};
            machine = true;
        }
        if (const std::string what = obstacle(option); !what.empty())
            read.obstacles.push_back(words_of(option) + " " + what);
        else if (const std::string path = relative_file(option, is_relative_file); !path.empty())
            read.obstacles.push_back(words_of(option) + " names '" + path +
                                     "' by a path that only holds where this QEMU was started");
        read.arguments.push_back(option.name);
        if (option.has_value) read.arguments.push_back(option.value);
    }
    if (!machine) read.arguments.insert(read.arguments.begin(), {"-machine", "type=" + machine_type});
    if (nographic && !serial)
        read.obstacles.emplace_back(
            "'-nographic' connects the guest's serial port to the terminal that this QEMU was started from");
    return read;
}

} // namespace liveupdate::supervisor::qemu
