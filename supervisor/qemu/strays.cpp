#include "supervisor/qemu/strays.hpp"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "handoff/base/fd.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

namespace fs = std::filesystem;

constexpr auto kConnectTime = std::chrono::milliseconds(100);

std::optional<pid_t> number(const std::string& name) {
    pid_t pid = 0;
    const auto [end, problem] = std::from_chars(name.data(), name.data() + name.size(), pid);
    if (problem != std::errc() || end != name.data() + name.size()) return std::nullopt;
    return pid;
}

// By the lock's file itself: in a container there may be a VM of the same name and the same paths. And by the
// command line: what QEMU itself has started has both until it becomes another program, and is of its number.
std::optional<handoff::Participant> participant_of(const MonitorFolder& folder, pid_t pid) {
    struct stat ours {};
    struct stat theirs {};
    const std::string held = "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(kLifeFd);
    if (::stat(folder.life_file().c_str(), &ours) < 0 || ::stat(held.c_str(), &theirs) < 0)
        return std::nullopt;
    if (ours.st_dev != theirs.st_dev || ours.st_ino != theirs.st_ino) return std::nullopt;
    const auto arguments = arguments_of(pid);
    if (!arguments) return std::nullopt;
    for (const std::string& argument : *arguments)
        if (const auto whose = folder.whose_option(argument)) return whose;
    return std::nullopt;
}

struct Stray {
    handoff::Participant participant;
    UniqueFd pidfd; // opened before the process was looked at
};

std::vector<Stray> all_of(const MonitorFolder& folder) {
    std::vector<Stray> found;
    std::error_code problem;
    for (const auto& entry : fs::directory_iterator("/proc", problem)) {
        const auto pid = number(entry.path().filename());
        if (!pid) continue;
        auto pidfd = fd::pidfd_open(*pid);
        if (!pidfd) continue;
        if (const auto participant = participant_of(folder, *pid))
            found.push_back({*participant, std::move(*pidfd)});
    }
    return found;
}

} // namespace

void end_waiting_destination(const MonitorFolder& folder) {
    const std::string path = folder.cpr_socket();
    if (::access(path.c_str(), F_OK) < 0) return;
    static_cast<void>(fd::unix_connect(path, SOCK_STREAM, Deadline::after(kConnectTime)));
}

bool lives(const MonitorFolder& folder, handoff::Participant participant) {
    const auto all = all_of(folder);
    return std::any_of(
        all.begin(), all.end(), [&](const Stray& each) { return each.participant == participant; });
}

void end_all_beside(const MonitorFolder& folder, handoff::Participant owner) {
    for (const Stray& each : all_of(folder)) {
        if (each.participant == owner) continue;
        static_cast<void>(fd::pidfd_send_signal(each.pidfd.get(), SIGKILL));
        pollfd polled{each.pidfd.get(), POLLIN, 0};
        while (::poll(&polled, 1, -1) < 0 && errno == EINTR) {
        }
    }
}

} // namespace liveupdate::supervisor::qemu
