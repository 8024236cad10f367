// Brings one VM to what is installed: its supervisor first, then its VMM. What `systemctl reload` and a
// package's hook come down to.
#pragma once

#include <string>
#include <vector>

#include "supervisor/cli/io.hpp"

namespace liveupdate::supervisor::cli {

struct BroughtUp {
    ExitCode code = ExitCode::kDone; // kNothingToDo when all was so already
    std::string sentence;
};

// Waits for one of `slots` host-wide places first, so that no more VMs than that are changed at once, whoever
// began it. From any thread.
BroughtUp bring_up_to_date(const Paths& paths, const std::string& name, unsigned slots);

// A program of the host's, without input; its exit status, or 127 when it cannot be started.
int run_program(const std::vector<std::string>& arguments);

} // namespace liveupdate::supervisor::cli
