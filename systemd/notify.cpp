#include "systemd/notify.hpp"

#include <fcntl.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "handoff/base/fd.hpp"

namespace liveupdate::systemd {
namespace {

Error from_sd(int negative_errno, std::string_view what) {
    errno = -negative_errno;
    return Error::from_errno(what);
}

} // namespace

bool has_manager() {
    const char* const socket = std::getenv("NOTIFY_SOCKET");
    return socket != nullptr && *socket != '\0';
}

Result<void> notify(const std::string& assignments) {
    if (const int r = sd_notify(0, assignments.c_str()); r < 0) return from_sd(r, "tell the service manager");
    return {};
}

Result<void> notify_reloading() {
    return notify("RELOADING=1\nMONOTONIC_USEC=" + std::to_string(monotonic_ns() / 1000));
}

Result<void> store_fd(const std::string& name, int fd) {
    const int flags = ::fcntl(fd, F_GETFL);
    const bool can_be_polled = flags >= 0 && (flags & O_PATH) == 0;
    const std::string text = "FDSTORE=1\nFDNAME=" + name + (can_be_polled ? "" : "\nFDPOLL=0");
    if (const int r = sd_pid_notify_with_fds(0, 0, text.c_str(), &fd, 1); r < 0)
        return from_sd(r, "give " + name + " to the service manager");
    return {};
}

Result<void> remove_stored_fd(const std::string& name) {
    return notify("FDSTOREREMOVE=1\nFDNAME=" + name);
}

Result<void> barrier(Deadline deadline) {
    if (!has_manager()) return {};
    const int left_ms = deadline.poll_ms();
    const uint64_t timeout_us = left_ms < 0 ? UINT64_MAX : static_cast<uint64_t>(left_ms) * 1000;
    if (const int r = sd_notify_barrier(0, timeout_us); r < 0)
        return from_sd(r, "wait for the service manager");
    return {};
}

std::map<std::string, UniqueFd> take_passed_fds() {
    std::map<std::string, UniqueFd> taken;
    char** names = nullptr;
    const int count = sd_listen_fds_with_names(1, &names);
    for (int i = 0; i < count; ++i) {
        taken[names[i]] = UniqueFd(SD_LISTEN_FDS_START + i);
        std::free(names[i]);
    }
    std::free(names);
    return taken;
}

Error exec_with_fds(const std::vector<std::string>& arguments, const std::vector<PassedFd>& fds) {
    // First above the numbers that they are to have, so that none overwrites another.
    const int above = SD_LISTEN_FDS_START + static_cast<int>(fds.size());
    std::vector<UniqueFd> copies;
    std::string names;
    for (const PassedFd& passed : fds) {
        UniqueFd copy(::fcntl(passed.fd, F_DUPFD_CLOEXEC, above));
        if (!copy) return Error::from_errno("duplicate " + passed.name);
        copies.push_back(std::move(copy));
        names += (names.empty() ? "" : ":") + passed.name;
    }
    // What lies at these numbers now has to survive a failure.
    std::vector<UniqueFd> former;
    for (int fd = SD_LISTEN_FDS_START; fd < above; ++fd)
        former.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, above));
    for (size_t i = 0; i < copies.size(); ++i)
        ::dup2(copies[i].get(), SD_LISTEN_FDS_START + static_cast<int>(i));
    ::setenv("LISTEN_PID", std::to_string(::getpid()).c_str(), 1);
    ::setenv("LISTEN_FDS", std::to_string(fds.size()).c_str(), 1);
    ::setenv("LISTEN_FDNAMES", names.c_str(), 1);
    std::vector<char*> argv;
    for (const std::string& argument : arguments)
        argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    ::execv(argv[0], argv.data());
    const Error error = Error::from_errno("become " + arguments[0]);
    for (const char* variable : {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"})
        ::unsetenv(variable);
    for (size_t i = 0; i < former.size(); ++i) {
        const int number = SD_LISTEN_FDS_START + static_cast<int>(i);
        if (former[i])
            ::dup3(former[i].get(), number, O_CLOEXEC);
        else
            ::close(number);
    }
    return error;
}

} // namespace liveupdate::systemd
