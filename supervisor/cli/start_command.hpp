// The command that starts a VM, for sentences that tell what to do.
#pragma once

#include <sys/types.h>

#include <string>

#include "handoff/base/result.hpp"
#include "supervisor/paths.hpp"

namespace liveupdate::supervisor::cli {

// Whose command it is to be, and where.
struct StartContext {
    uid_t uid;
    Environment environment;
    bool systemd; // the host was booted with it
};

// "systemctl start liveupdate@web1", with "--user" for a user's own, where the unit reads this VM's file;
// else "liveupdate start web1", also for a VM that was started so before: of its supervisor there is a log.
std::string start_command(const Paths& paths, const std::string& name, const StartContext& context);
// The same for this process.
std::string start_command(const Paths& paths, const std::string& name);

// kNotFound, of a VM that is there and has no supervisor: says how to start it.
Error not_running(const Paths& paths, const std::string& name);

} // namespace liveupdate::supervisor::cli
