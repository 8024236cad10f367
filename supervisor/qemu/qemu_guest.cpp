#include "supervisor/qemu/qemu_guest.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "handoff/base/fd.hpp"
#include "supervisor/guest_files.hpp"
#include "supervisor/qemu/command_line.hpp"
#include "supervisor/qemu/descriptors.hpp"
#include "supervisor/qemu/listening_plan.hpp"
#include "supervisor/qemu/listening_sockets.hpp"
#include "supervisor/qemu/run_state.hpp"
#include "supervisor/tap.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

constexpr const char* kConsoleSet = "/dev/fdset/1"; // of console_fds()
constexpr int kMostNets = 8;

std::string pin_path(const VmConfig& config, const Paths& paths) {
    return paths.vm_state_dir(config.name) + "/qemu-machine.json";
}

// What the guest's command line says that it has been given.
std::vector<int> device_numbers(const std::vector<std::string>& arguments) {
    std::vector<int> numbers;
    for (const std::string& argument : arguments) {
        if (argument == console_fds()) numbers.push_back(kConsoleFd);
        for (int net = 0; net < kMostNets; ++net)
            if (argument.find("\"fd\":\"" + std::to_string(kFirstNetFd + net) + "\"") != std::string::npos)
                numbers.push_back(kFirstNetFd + net);
    }
    return numbers;
}

} // namespace

Result<void> QemuGuest::make_baton(uint32_t epoch) {
    TRY_ASSIGN(baton_fd, handoff::Baton::create_segment(epoch));
    return map_baton();
}

Result<void> QemuGuest::map_baton() {
    TRY_ASSIGN(handoff::Baton mapped, handoff::Baton::map(baton_fd.get()));
    baton = std::make_unique<handoff::Baton>(std::move(mapped));
    return {};
}

Result<QemuGuest> QemuGuest::create(
    const VmConfig& config, const Paths& paths, const std::string& machine_type, RamSpace space) {
    QemuGuest guest;
    guest.arguments = config.qemu.command_line;
    if (!guest.arguments.empty()) {
        TRY(guest.make_baton());
        return guest;
    }
    const MemoryConfig& memory = config.memory.front();
    if (memory.backing != Backing::kPrivate) {
        TRY(check_ram_folder(memory));
        TRY_ASSIGN(handoff::RamBlock block,
            handoff::create_ram_block(kRamId, ram_kind(memory.backing), memory.size, memory.directory));
        if (space == RamSpace::kSetAside) TRY(handoff::set_space_aside(block));
        guest.ram = std::move(block.file);
    }
    guest.arguments = guest_arguments(config, machine_type);
    TRY(guest.open_devices(config, paths));
    return guest;
}

Result<QemuGuest> QemuGuest::create_clone(
    const VmConfig& config, const Paths& paths, const std::string& machine_type, UniqueFd image) {
    QemuGuest guest;
    guest.ram = std::move(image);
    guest.arguments = guest_arguments(config, machine_type, RamMapping::kPrivate);
    TRY(guest.open_devices(config, paths));
    return guest;
}

Result<void> QemuGuest::open_devices(const VmConfig& config, const Paths& paths) {
    TRY(make_baton());
    handoff::NamedFds console;
    TRY(open_console(config, paths, console));
    if (console["console"]) devices[kConsoleFd] = std::move(console["console"]);
    if (console["console-slave"]) devices[kConsoleSlaveFd] = std::move(console["console-slave"]);
    for (size_t i = 0; i < config.nets.size(); ++i) {
        if (config.nets[i].type != NetType::kTap) continue;
        // With headers, a QEMU that merely starts would set their size in the tap that another one uses.
        TRY_ASSIGN(OpenTap tap, open_tap(config.nets[i].tap, 1, TapHeaders::kNone));
        devices[kFirstNetFd + static_cast<int>(i)] = std::move(tap.queues.front());
    }
    TRY_ASSIGN(ListeningPlan plan, plan_listening(config.qemu.extra_args));
    for (size_t i = 0; i < plan.sockets.size(); ++i) {
        TRY_ASSIGN(devices[kFirstListeningFd + static_cast<int>(i)], listen_at(plan.sockets[i]));
    }
    arguments.insert(arguments.end(), plan.arguments.begin(), plan.arguments.end());
    return {};
}

Result<bool> QemuGuest::take_word(QemuProcess& process, const handoff::NamedFds& kept, Deadline deadline) {
    TRY_ASSIGN(const RunState state, run_state(process, deadline));
    if (const auto found = kept.find("baton"); found != kept.end()) {
        TRY_ASSIGN(baton_fd, fd::dup(found->second.get()));
        TRY(map_baton());
        const handoff::BatonWord word = baton->read();
        const bool own = word.state != handoff::BatonState::kFree && word.owner == process.participant();
        if (!own && state.running)
            return Error(ErrorCode::kBusy, "the QEMU with pid " + std::to_string(process.pid()) +
                                               " runs the guest, but the baton is " + to_string(word) +
                                               "; one of the two is wrong: end the QEMU, or stop the unit");
        return true;
    }
    if (state.status == "postmigrate") return false;
    TRY(make_baton());
    if (!baton->claim(process.participant())) return Error(ErrorCode::kInternal, "a fresh baton is not free");
    return true;
}

Result<std::optional<QemuGuest>> QemuGuest::from(
    QemuProcess& process, const handoff::NamedFds& kept, Deadline deadline) {
    QemuGuest guest;
    TRY_ASSIGN(guest.arguments, process.guest_arguments());
    if (process.is_adopted()) {
        TRY_ASSIGN(const bool has_guest, guest.take_word(process, kept, deadline));
        return has_guest ? std::optional<QemuGuest>(std::move(guest)) : std::nullopt;
    }
    TRY_ASSIGN(guest.baton_fd, process.take_fd(kBatonFd));
    TRY(guest.map_baton());
    const auto has_ram = [](const std::string& argument) {
        return argument.find('"' + ram_path() + '"') != std::string::npos;
    };
    if (std::any_of(guest.arguments.begin(), guest.arguments.end(), has_ram)) {
        TRY_ASSIGN(guest.ram, process.take_fd(kRamFd));
    }
    for (const int number : device_numbers(guest.arguments)) {
        TRY_ASSIGN(guest.devices[number], process.take_fd(number == kConsoleFd ? kConsoleKeptFd : number));
    }
    // A device that was taken out of the running QEMU has closed its own; the next QEMU says that it lacks
    // it.
    for (const int number : listening_numbers(guest.arguments))
        if (auto socket = process.take_fd(number); socket && listens_for_guest(socket->get()))
            guest.devices[number] = std::move(*socket);
    // Of a pty alone; a console that is a file has none.
    if (guest.devices.contains(kConsoleFd))
        if (auto slave = process.take_fd(kConsoleSlaveFd)) guest.devices[kConsoleSlaveFd] = std::move(*slave);
    return std::optional<QemuGuest>(std::move(guest));
}

// QEMU tells the kinds apart by the name of the backend: a terminal is opened for both directions at once.
nlohmann::json QemuGuest::console_backend() const {
    const auto found = devices.find(kConsoleFd);
    struct stat status {};
    if (found == devices.end() || ::fstat(found->second.get(), &status) < 0) return nullptr;
    if (S_ISCHR(status.st_mode)) return {{"type", "pipe"}, {"data", {{"device", kConsoleSet}}}};
    return {{"type", "file"}, {"data", {{"out", kConsoleSet}, {"append", true}}}};
}

std::vector<ChildFd> QemuGuest::fds() const {
    std::vector<ChildFd> all{{baton_fd.get(), kBatonFd}};
    if (ram) all.push_back({ram.get(), kRamFd});
    for (const auto& [number, file] : devices)
        all.push_back({file.get(), number});
    if (const auto console = devices.find(kConsoleFd); console != devices.end())
        all.push_back({console->second.get(), kConsoleKeptFd});
    return all;
}

std::vector<std::string> QemuGuest::socket_paths() const {
    std::vector<std::string> paths;
    for (auto each = devices.lower_bound(kFirstListeningFd); each != devices.end(); ++each)
        if (std::string path = path_of(each->second.get()); !path.empty()) paths.push_back(std::move(path));
    return paths;
}

void drop(QemuGuest guest) {
    const std::vector<std::string> sockets = guest.socket_paths();
    guest.devices.clear();
    for (const std::string& path : sockets)
        remove_dead_socket(path);
}

Result<std::string> pinned_machine(const VmConfig& config, const Paths& paths) {
    const std::string asked = machine_type_of(config.qemu.machine), path = pin_path(config, paths);
    if (::access(path.c_str(), F_OK) < 0) return asked;
    TRY_ASSIGN(const std::string text, fd::read_file(path, 4096));
    const auto json = nlohmann::json::parse(text, nullptr, false);
    const auto word = [&](const char* key) {
        return json.is_object() && json.contains(key) && json[key].is_string() ? json[key].get<std::string>()
                                                                               : std::string();
    };
    const std::string pinned = word("pinned");
    if (pinned.empty())
        return Error(ErrorCode::kInvalid,
            path + " names no machine type; remove it, and the next start pins '" + asked + "' anew");
    return word("asked") == asked ? pinned : asked;
}

Result<void> pin_machine(const VmConfig& config, const Paths& paths, const std::string& machine_type) {
    const nlohmann::json json = {{"asked", machine_type_of(config.qemu.machine)}, {"pinned", machine_type}};
    return fd::write_file_atomically(pin_path(config, paths), json.dump() + "\n");
}

} // namespace liveupdate::supervisor::qemu
