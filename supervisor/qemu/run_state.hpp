// Questions to one QEMU, and the way back to a guest that runs.
#pragma once

#include <optional>
#include <string>

#include "supervisor/qemu/qemu_process.hpp"

namespace liveupdate::supervisor::qemu {

struct RunState {
    bool running = false;
    std::string status; // QEMU's word: "running", "paused", "postmigrate"...
};

Result<RunState> run_state(QemuProcess& qemu, Deadline deadline);

// "pc-q35-7.2" of a QEMU that was asked for "q35".
Result<std::string> machine_type(QemuProcess& qemu, Deadline deadline);

// Whether a later QEMU may be without the machine type that this one has.
Result<bool> is_deprecated(QemuProcess& qemu, const std::string& machine_type, Deadline deadline);
// What is said of it.
std::string deprecation_note(const std::string& machine_type, const std::string& qemu_version);

// Of its last or present migration: "active", "completed", "failed"; empty when it has had none.
Result<std::string> migration_status(QemuProcess& qemu, Deadline deadline);

// The same once it stands: "completed", "failed", "cancelled", "postcopy-paused"... kTimeout.
Result<std::string> settled_migration(QemuProcess& qemu, Deadline deadline);

// Whether the source of a postcopy whose destination is gone can still run the guest: it has given no page
// away.
Result<bool> has_all_pages(QemuProcess& source, Deadline deadline);
// Whether a destination has all of the guest, when its source is gone or says nothing: waits for what is
// still on its way. kTimeout: it is still coming.
Result<bool> has_come_whole(QemuProcess& destination, Deadline deadline);
// kRefused: the QEMU is no source of a migration, and never was one.
Result<void> start_postcopy(QemuProcess& source, Deadline deadline);
// Of its last migration, as QEMU measures it: whole milliseconds, rounded down. Empty: it tells none.
Result<std::optional<uint64_t>> downtime_us(QemuProcess& qemu, Deadline deadline);

// Makes the guest run in a QEMU that is its owner, whatever migration was under way; nobody else may be able
// to run it. kRefused: QEMU does not let it.
Result<void> make_run(QemuProcess& qemu, Deadline deadline);

// Connects the guest's console to `backend`; null: it has none.
Result<void> attach_console(QemuProcess& qemu, const nlohmann::json& backend, Deadline deadline);

} // namespace liveupdate::supervisor::qemu
