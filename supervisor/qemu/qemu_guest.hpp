// What all QEMUs of one guest have in common: its RAM, the word that says who may run it, and the command
// line. The supervisor holds it; a later one finds it in the QEMU that runs.
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "handoff/baton.hpp"
#include "handoff/ram_block.hpp"
#include "supervisor/config.hpp"
#include "supervisor/paths.hpp"
#include "supervisor/qemu/qemu_process.hpp"

namespace liveupdate::supervisor::qemu {

// Whether the RAM that a guest is made with is the one that it will have, for which the disk must have room.
enum class RamSpace { kSetAside, kOfAnother };

struct QemuGuest {
    UniqueFd ram; // none when it is private to each QEMU; of a clone the image that it is mapped out of
    // Console, taps and sockets of devices that listen, by the numbers that each QEMU has them under.
    std::map<int, UniqueFd> devices;
    UniqueFd baton_fd;
    // Moved by the supervisor alone, on behalf of the QEMUs, which know nothing of it: a QEMU is let run the
    // guest only once the word names it.
    std::unique_ptr<handoff::Baton> baton;
    std::vector<std::string> arguments;

    // Fresh RAM, a free word, an opened console, attached taps, sockets that listen.
    static Result<QemuGuest> create(
        const VmConfig& config, const Paths& paths, const std::string& machine_type, RamSpace space);
    // The same with RAM that is mapped privately out of `image`, which nobody writes to.
    static Result<QemuGuest> create_clone(
        const VmConfig& config, const Paths& paths, const std::string& machine_type, UniqueFd image);
    // Another free word; the epoch of whoever holds it first follows `epoch`.
    Result<void> make_baton(uint32_t epoch = 0);
    // From a QEMU that has it; whether that one owns the guest is in the word. One that somebody else has
    // started has no word: it is what the service manager has kept, else a new one that names this QEMU, or
    // nothing, when this QEMU has given the guest away. kBusy: it runs the guest, and may not.
    static Result<std::optional<QemuGuest>> from(
        QemuProcess& process, const handoff::NamedFds& kept, Deadline deadline);

    // What the character device of the console is to be in the QEMU that has the guest, for `chardev-change`;
    // null without a console. The others have it closed, so that they take nothing of what is typed.
    nlohmann::json console_backend() const;

    // Borrowed, for each QEMU of the guest.
    std::vector<ChildFd> fds() const;
    // Paths of sockets of devices that listen.
    std::vector<std::string> socket_paths() const;

private:
    Result<void> map_baton();
    // A free word as well; adds extra_args, with the sockets' numbers, to the arguments.
    Result<void> open_devices(const VmConfig& config, const Paths& paths);
    // Of one that somebody else has started. False: the guest is not its own any more.
    Result<bool> take_word(QemuProcess& process, const handoff::NamedFds& kept, Deadline deadline);
};

// Of a guest that no QEMU has any more: its sockets' files go, too.
void drop(QemuGuest guest);

// The machine type that this guest is pinned to, from the VM's state folder; the one that the VM file asks
// for when there is none, or when it was pinned for another.
Result<std::string> pinned_machine(const VmConfig& config, const Paths& paths);
Result<void> pin_machine(const VmConfig& config, const Paths& paths, const std::string& machine_type);

} // namespace liveupdate::supervisor::qemu
