// Runs a program to its end, for tests of commands. Never waits longer than the limit: then the program is
// killed and `timed_out` is set.
#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace liveupdate::tests {

struct CommandResult {
    int status = -1; // exit status, or 128 + signal
    bool timed_out = false;
    std::string out;
    std::string err;
};

// `environment`: "NAME=value" that are added to, or replace, those of this process.
CommandResult run_command(const std::vector<std::string>& arguments,
    const std::vector<std::string>& environment = {}, std::chrono::seconds limit = std::chrono::seconds(60));

} // namespace liveupdate::tests
