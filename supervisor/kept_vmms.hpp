// VMMs of a former supervisor, by what the service manager has kept of them: "vmm-PID", a pidfd, and
// "session-PID", the socket that one listens at, as a file, or our end of a QEMU's monitor.
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>
#include <vector>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"
#include "handoff/channel.hpp"

namespace liveupdate::supervisor {

inline constexpr std::string_view kKeptPidfd = "vmm-";
inline constexpr std::string_view kKeptSession = "session-";
std::string kept_pidfd(pid_t pid);   // "vmm-PID"
std::string kept_session(pid_t pid); // "session-PID"

// Those of `paths` that exist, and a path each for those that were kept and have another name or none. What
// was kept outlives the folder that it was made in.
std::vector<std::string> session_sockets(
    const std::vector<std::string>& paths, const handoff::NamedFds& kept);

// For when none has answered as the guest's owner: waits for the end of all that were kept. kBusy: one lives
// on, and a second one beside it would be worse than none. `folder`: where its socket should lie.
Result<void> await_end_of_kept(const handoff::NamedFds& kept, Deadline deadline, const std::string& folder);

} // namespace liveupdate::supervisor
