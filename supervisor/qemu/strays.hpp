// QEMUs of a guest that a supervisor has left before they had a monitor, when it died in the middle of an
// update. They have nothing of the guest, and cannot be asked who they are: their command line tells.
#pragma once

#include "supervisor/qemu/qemu_process.hpp"

namespace liveupdate::supervisor::qemu {

// Ends the destination of cpr-transfer that waits for its source, by closing the channel that it waits for:
// it has no monitor until then. One whose source has come already does not notice.
void end_waiting_destination(const MonitorFolder& folder);

// Whether the QEMU of that number lives, if a supervisor has started it.
bool lives(const MonitorFolder& folder, handoff::Participant participant);

// Ends all of them but number `owner`, which has the guest, with SIGKILL; they are gone when it returns.
void end_all_beside(const MonitorFolder& folder, handoff::Participant owner);

} // namespace liveupdate::supervisor::qemu
