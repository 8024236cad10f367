// Waiting for a supervisor that was just started.
#pragma once

#include <string>

#include "handoff/base/deadline.hpp"
#include "supervisor/cli/io.hpp"
#include "supervisor/cli/supervisor_process.hpp"

namespace liveupdate::supervisor::cli {

// The state a supervisor answers with; empty when none answers.
std::string state_of(const Paths& paths, const std::string& name);

// Until the guest runs, the supervisor has ended, or the deadline has passed; told to the user.
ExitCode wait_until_running(
    CliIo& io, const std::string& name, SupervisorProcess& process, Deadline deadline);

} // namespace liveupdate::supervisor::cli
