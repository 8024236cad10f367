// Starting liveupdated.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "handoff/base/result.hpp"

namespace liveupdate::supervisor::cli {

// $LIVEUPDATED when it is set, else the one beside this program, else the installed one.
std::string find_supervisor_program();

// A supervisor in a session of its own, which lives on when this process ends.
class SupervisorProcess {
public:
    // Standard input from /dev/null, the outputs appended to `log_path`; `more` follows --config.
    static Result<SupervisorProcess> spawn(const std::string& program, const std::string& config_path,
        const std::string& log_path, const std::vector<std::string>& more = {});

    // Once it has ended: its exit status, or 128 and the signal. Never blocks.
    std::optional<int> ended();
    pid_t pid() const { return pid_; }
    // What it has written to its log since it was spawned: the last `lines` lines, each with its newline.
    std::string log_tail(size_t lines) const;

private:
    SupervisorProcess() = default;
    pid_t pid_ = -1;
    std::string log_path_;
    size_t log_start_ = 0; // bytes that were in the log before
    std::optional<int> status_;
};

// Becomes the supervisor, with --foreground; returns only when that fails.
Error exec_supervisor(const std::string& program, const std::string& config_path);

} // namespace liveupdate::supervisor::cli
