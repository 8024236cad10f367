// Update records in words.
#pragma once

#include <cstdint>
#include <string>

#include "supervisor/cli/io.hpp"
#include "supervisor/record.hpp"

namespace liveupdate::supervisor::cli {

// "updated 1.0 -> 1.1, blackout 0.41 ms (predicted 0.45 ms)", "refused: …; the guest was not touched".
std::string describe(const UpdateRecord& record);

// The colour an outcome is shown in.
Colour colour_of(ExitCode code);

// "2026-11-22 10:15:30" in local time.
std::string local_time(int64_t unix_seconds);
// "2h 3min ago", or "just now".
std::string ago(int64_t unix_seconds, int64_t now);

} // namespace liveupdate::supervisor::cli
