// A VM's status, as the supervisor tells it, in words.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "supervisor/cli/io.hpp"

namespace liveupdate::supervisor::cli {

// The block of lines of `status`, its last line what to do next. `now` in Unix seconds.
void print_status(CliIo& io, const nlohmann::json& status, int64_t now);

// One row of `list`, and the titles.
std::vector<std::string> list_titles();
std::vector<std::string> list_row(const nlohmann::json& status);

// What a person would do next, or "" when all is well: "run `liveupdate now web1`".
std::string next_step(const nlohmann::json& status, const Paths& paths);

// 0 when the guest runs, kLost when it is lost, kUnreachable otherwise.
ExitCode code_of_state(const nlohmann::json& status);

} // namespace liveupdate::supervisor::cli
