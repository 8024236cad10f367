// All that a guest consists of beside its device state, held by the supervisor as file descriptors: RAM
// blocks, the baton, /dev/kvm, the console, disks, tap devices. Every VMM of the guest is given these, by
// name.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "handoff/baton.hpp"
#include "handoff/channel.hpp"
#include "handoff/manifest.hpp"
#include "supervisor/config.hpp"
#include "supervisor/paths.hpp"

namespace liveupdate::supervisor {

struct GuestFiles {
    handoff::Manifest manifest;
    UniqueFd baton_fd;
    std::unique_ptr<handoff::Baton> baton;
    handoff::NamedFds devices; // "kvm", "console", "console-slave", "disk0"…, "net0", "net0-1"…, "origin"

    // Fresh RAM, a free baton, an opened console, locked disks, attached taps.
    static Result<GuestFiles> create(const VmConfig& config, const Paths& paths);
    // What a VMM that already runs the guest gave back.
    static Result<GuestFiles> adopt(const handoff::proto::Manifest& manifest, handoff::NamedFds fds);

    // The saved guest that RAM comes from page by page (Machine.ram_origin); -1 for RAM that is all its own.
    int origin() const;

    // Borrowed fds for a launch (beside the boot files) or a preparation (beside the transfer area).
    std::vector<handoff::FdToSend> to_send() const;
};

handoff::RamKind ram_kind(Backing backing);

// kInvalid in words: the folder that RAM is to lie in is not on its backing's file system.
Result<void> check_ram_folder(const MemoryConfig& memory);

// The block with the witness page; RAM blocks are called "ram0", "ram1"…
inline constexpr const char* kWitnessBlock = "witness";

// Puts "console", and for a pty "console-slave", among the devices; nothing for type none.
Result<void> open_console(const VmConfig& config, const Paths& paths, handoff::NamedFds& devices);

// What the CLI connects a terminal to: the pty's slave, the file, or the socket. Empty for none.
std::string console_path(const VmConfig& config, const Paths& paths);

// What a launch is given beside the rest and later destinations are not: "kernel" and "initrd", as far as the
// VM file names them. Nothing for firmware, which lies in a RAM block.
Result<handoff::NamedFds> open_boot_files(const VmConfig& config);

} // namespace liveupdate::supervisor
