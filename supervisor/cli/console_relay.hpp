// Bytes between a terminal and a guest's console.
#pragma once

#include <functional>

#include "handoff/base/result.hpp"

namespace liveupdate::supervisor::cli {

constexpr char kLeaveKey = 0x1d; // Ctrl-]

enum class RelayEnd { kLeft, kConsoleClosed, kInterrupted };

// Copies `input` to `console` and `console` to `output` until Ctrl-] is read, the console is closed, or
// `interrupted` says so after a signal. After the end of `input` (a pipe) the console's output is still
// shown. All fds are borrowed and may be blocking.
Result<RelayEnd> relay_console(int input, int output, int console, const std::function<bool()>& interrupted);

} // namespace liveupdate::supervisor::cli
