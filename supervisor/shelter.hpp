// Where a VMM that was just started is brought, so that the end of its supervisor is not its own.
#pragma once

#include <sys/types.h>

#include <functional>

namespace liveupdate::supervisor {

// Borrowed descriptors.
struct StartedVmm {
    pid_t pid = 0;
    int pidfd = -1;
    // What a later supervisor speaks to it through: the socket that it listens at, as a file (O_PATH), or our
    // end of QEMU's monitor. -1: there is none.
    int session_file = -1;
};

// Called with each VMM that was started, before it is given anything, on the thread that starts it.
using Shelter = std::function<void(const StartedVmm&)>;

} // namespace liveupdate::supervisor
