// The QEMUs of a guest that live, whoever has started them: what a supervisor finds that follows another one.
// They cannot be asked who they are before that is known; what they have inherited and their command line
// tells.
#pragma once

#include <sys/types.h>

#include <optional>
#include <vector>

#include "handoff/baton.hpp"
#include "handoff/channel.hpp"
#include "supervisor/qemu/qemu_folder.hpp"

namespace liveupdate::supervisor::qemu {

struct LivingQemu {
    handoff::Participant participant = 0;
    pid_t pid = 0;
    UniqueFd pidfd;   // opened before the process was looked at
    UniqueFd monitor; // our end of its monitor, when the service manager has kept it
};

// Those that supervisors have started: who holds the folder's lock of life, and who was `kept`, since the
// folder may have been removed. What a QEMU has forked is not among them.
std::vector<LivingQemu> living_qemus(const QemuFolder& folder, const handoff::NamedFds& kept = {});

// Whose the guest is, as the first of them tells that has its word; empty when none has.
std::optional<handoff::BatonWord> word_of(const std::vector<LivingQemu>& qemus);

// Ends all of them, and what they have forked, but number `owner`, which has the guest; 0: all. With SIGKILL;
// they are gone when it returns.
void end_all_beside(const QemuFolder& folder, const handoff::NamedFds& kept, handoff::Participant owner);

// Ends the destination of cpr-transfer that waits for its source, by closing the channel that it waits for:
// it speaks at no monitor until then. One whose source has come already does not notice.
void end_waiting_destination(const QemuFolder& folder);

} // namespace liveupdate::supervisor::qemu
