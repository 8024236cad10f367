#include "supervisor/kept_vmms.hpp"

#include <poll.h>
#include <sys/stat.h>

#include <cerrno>
#include <optional>
#include <set>
#include <utility>

#include "handoff/base/fd.hpp"

namespace liveupdate::supervisor {
namespace {

using FileId = std::pair<dev_t, ino_t>;

std::optional<FileId> id_of(const std::string& path) {
    struct stat status {};
    if (::stat(path.c_str(), &status) < 0) return std::nullopt;
    return FileId{status.st_dev, status.st_ino};
}

} // namespace

std::string kept_pidfd(pid_t pid) {
    return std::string(kKeptPidfd) + std::to_string(pid);
}

std::string kept_session(pid_t pid) {
    return std::string(kKeptSession) + std::to_string(pid);
}

std::vector<std::string> session_sockets(
    const std::vector<std::string>& paths, const handoff::NamedFds& kept) {
    std::vector<std::string> found;
    std::set<FileId> seen;
    const auto add = [&](const std::string& path) {
        const auto id = id_of(path);
        if (id && seen.insert(*id).second) found.push_back(path);
    };
    for (const std::string& path : paths)
        add(path);
    for (const auto& [name, file] : kept)
        if (name.starts_with(kKeptSession)) add("/proc/self/fd/" + std::to_string(file.get()));
    return found;
}

Result<void> await_end_of_kept(const handoff::NamedFds& kept, Deadline deadline, const std::string& folder) {
    for (const auto& [name, file] : kept) {
        if (!name.starts_with(kKeptPidfd)) continue;
        pollfd polled{file.get(), POLLIN, 0};
        while (::poll(&polled, 1, deadline.poll_ms()) < 0 && errno == EINTR) {
        }
        if (!fd::process_gone(file.get()))
            return Error(ErrorCode::kBusy, "the VMM with pid " + name.substr(kKeptPidfd.size()) +
                                               " lives, but does not answer as this guest's (" + folder +
                                               "); a second one is not started beside it");
    }
    return {};
}

} // namespace liveupdate::supervisor
