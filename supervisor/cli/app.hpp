// The `liveupdate` command without its main().
#pragma once

#include <string>
#include <vector>

#include "supervisor/cli/io.hpp"

namespace liveupdate::supervisor::cli {

// Parses the arguments (without the program's name) and runs the command they name. Never throws.
ExitCode run_command(CliIo& io, std::vector<std::string> arguments);

} // namespace liveupdate::supervisor::cli
