// What a service tells its service manager, and the file descriptors that the manager keeps for it:
// sd_notify(3) and the file descriptor store of systemd.service(5).
//
// Without a manager ($NOTIFY_SOCKET is not set) nothing is sent and nothing fails, so callers need not ask.
// Every function may be called from any thread, but take_passed_fds().
#pragma once

#include <map>
#include <string>
#include <vector>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"

namespace liveupdate::systemd {

bool has_manager();

// Assignments as sd_notify(3) has them, one on each line: "READY=1\nSTATUS=running".
Result<void> notify(const std::string& assignments);

// "RELOADING=1" with the time that newer managers ask for beside it. READY=1 ends it.
Result<void> notify_reloading();

// The manager keeps a duplicate and gives it to this service's next process, whatever ends this one. Names
// are printable ASCII without ':'. Twice the same open file is one. Dropped when it hangs up, but for one
// that was opened with O_PATH. Not before the barrier is it sure to be kept.
Result<void> store_fd(const std::string& name, int fd);
Result<void> remove_stored_fd(const std::string& name);
// Waits until the manager has read everything that was sent before.
Result<void> barrier(Deadline deadline);

// Those that were given to this process (LISTEN_FDS), by name and close-on-exec; of two with one name the
// later. Once, while the process has one thread: takes the variables out of the environment.
std::map<std::string, UniqueFd> take_passed_fds();

struct PassedFd {
    std::string name;
    int fd;
};

// Replaces this process by `arguments[0]`, which finds `fds` by take_passed_fds(). The process keeps its pid,
// so its manager does not notice. Returns only when it failed; the process then is as before, but for the
// variables.
Error exec_with_fds(const std::vector<std::string>& arguments, const std::vector<PassedFd>& fds);

} // namespace liveupdate::systemd
