// Where a VMM that was just started is brought, so that the end of its supervisor is not its own.
#pragma once

#include <sys/types.h>

#include <functional>

namespace liveupdate::supervisor {

// Borrowed descriptors.
struct StartedVmm {
    pid_t pid = 0;
    int pidfd = -1;
    int session_file = -1; // O_PATH: the socket that it listens at for a supervisor; -1: it has none
};

// Called with each VMM that was started, before it is given anything, on the thread that starts it.
using Shelter = std::function<void(const StartedVmm&)>;

} // namespace liveupdate::supervisor
