// Asking a supervisor for a save, which SIGINT calls off.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "supervisor/cli/io.hpp"

namespace liveupdate::supervisor::cli {

// The report. The first SIGINT asks the supervisor to stop, the second gives up waiting. An error has been
// told to the user; the guest runs on after it, whatever the reason was.
Result<nlohmann::json> call_save(
    CliIo& io, const std::string& name, const nlohmann::json& request, ExitCode& code);

// "web1: saved to …: 12 MiB written …", from the report.
std::string save_summary(const nlohmann::json& report, const std::string& name);
void print_notes(CliIo& io, const nlohmann::json& report);

} // namespace liveupdate::supervisor::cli
