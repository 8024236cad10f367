#include "supervisor/qemu/qemu_guest.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "handoff/base/fd.hpp"
#include "supervisor/guest_files.hpp"
#include "supervisor/qemu/command_line.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

std::string pin_path(const VmConfig& config, const Paths& paths) {
    return paths.vm_state_dir(config.name) + "/qemu-machine.json";
}

} // namespace

Result<QemuGuest> QemuGuest::create(const VmConfig& config, const std::string& machine_type) {
    QemuGuest guest;
    const MemoryConfig& memory = config.memory.front();
    TRY_ASSIGN(handoff::RamBlock block,
        handoff::create_ram_block(kRamId, ram_kind(memory.backing), memory.size, memory.directory));
    guest.ram = std::move(block.file);
    TRY_ASSIGN(guest.baton_fd, handoff::Baton::create_segment());
    TRY_ASSIGN(handoff::Baton baton, handoff::Baton::map(guest.baton_fd.get()));
    guest.baton = std::make_unique<handoff::Baton>(std::move(baton));
    guest.arguments = guest_arguments(config, machine_type);
    return guest;
}

Result<QemuGuest> QemuGuest::from(const QemuProcess& process) {
    QemuGuest guest;
    TRY_ASSIGN(guest.arguments, process.guest_arguments());
    TRY_ASSIGN(guest.baton_fd, process.open_fd(kBatonFd, O_RDWR));
    TRY_ASSIGN(handoff::Baton baton, handoff::Baton::map(guest.baton_fd.get()));
    guest.baton = std::make_unique<handoff::Baton>(std::move(baton));
    TRY_ASSIGN(guest.ram, process.open_fd(kRamFd, O_RDWR));
    return guest;
}

std::vector<ChildFd> QemuGuest::fds() const {
    return {{ram.get(), kRamFd}, {baton_fd.get(), kBatonFd}};
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
