#include "supervisor/qemu/living_qemus.hpp"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <optional>

#include "handoff/base/fd.hpp"
#include "supervisor/kept_vmms.hpp"
#include "supervisor/qemu/adopted.hpp"
#include "supervisor/qemu/descriptors.hpp"
#include "supervisor/qemu/own_monitor.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

namespace fs = std::filesystem;

constexpr auto kConnectTime = std::chrono::milliseconds(100);

std::optional<pid_t> number(std::string_view name) {
    pid_t pid = 0;
    const auto [end, problem] = std::from_chars(name.data(), name.data() + name.size(), pid);
    if (problem != std::errc() || end != name.data() + name.size()) return std::nullopt;
    return pid;
}

// By the lock's file itself: in a container there may be a VM of the same name and the same paths.
bool holds_life(const QemuFolder& folder, pid_t pid) {
    struct stat ours {};
    struct stat theirs {};
    const std::string held = "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(kLifeFd);
    return ::stat(folder.life_file().c_str(), &ours) == 0 && ::stat(held.c_str(), &theirs) == 0 &&
           ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino;
}

std::optional<LivingQemu> look_at(pid_t pid, UniqueFd pidfd) {
    const auto arguments = arguments_of(pid);
    const auto monitor = arguments ? own_monitor(*arguments) : std::nullopt;
    if (!monitor || fd::process_gone(pidfd.get())) return std::nullopt;
    return LivingQemu{monitor->participant, pid, std::move(pidfd), {}};
}

std::vector<LivingQemu> all_with_life(const QemuFolder& folder) {
    std::vector<LivingQemu> found;
    std::error_code problem;
    for (const auto& entry : fs::directory_iterator("/proc", problem)) {
        const auto pid = number(entry.path().filename().string());
        if (!pid) continue;
        auto pidfd = fd::pidfd_open(*pid);
        if (!pidfd || !holds_life(folder, *pid)) continue;
        if (auto qemu = look_at(*pid, std::move(*pidfd))) found.push_back(std::move(*qemu));
    }
    return found;
}

std::vector<LivingQemu> all_of(const QemuFolder& folder, const handoff::NamedFds& kept) {
    std::vector<LivingQemu> found = all_with_life(folder);
    for (const auto& [name, file] : kept) {
        if (!name.starts_with(kKeptPidfd)) continue;
        const auto pid = number(std::string_view(name).substr(kKeptPidfd.size()));
        auto pidfd = fd::dup(file.get());
        if (!pid || !pidfd || fd::process_gone(pidfd->get())) continue;
        auto known =
            std::find_if(found.begin(), found.end(), [&](const auto& each) { return each.pid == *pid; });
        if (known == found.end()) {
            auto qemu = look_at(*pid, std::move(*pidfd));
            if (!qemu) continue;
            known = found.insert(found.end(), std::move(*qemu));
        }
        const auto monitor = kept.find(kept_session(*pid));
        if (monitor == kept.end()) continue;
        if (auto end = fd::dup(monitor->second.get())) known->monitor = std::move(*end);
    }
    return found;
}

} // namespace

std::vector<LivingQemu> living_qemus(const QemuFolder& folder, const handoff::NamedFds& kept) {
    std::vector<LivingQemu> found = all_of(folder, kept);
    // Until it becomes another program, what a QEMU has forked looks like it.
    std::vector<pid_t> children;
    for (const LivingQemu& each : found) {
        const auto parent = parent_of(each.pid);
        if (parent && std::any_of(found.begin(), found.end(), [&](const auto& other) {
                return other.pid == *parent && other.participant == each.participant;
            }))
            children.push_back(each.pid);
    }
    std::erase_if(found, [&](const LivingQemu& each) {
        return std::find(children.begin(), children.end(), each.pid) != children.end();
    });
    return found;
}

std::optional<handoff::BatonWord> word_of(const std::vector<LivingQemu>& qemus) {
    for (const LivingQemu& each : qemus) {
        const auto segment = fd::pidfd_getfd(each.pidfd.get(), kBatonFd);
        if (!segment) continue;
        if (const auto baton = handoff::Baton::map(segment->get())) return baton->read();
    }
    return std::nullopt;
}

void end_all_beside(const QemuFolder& folder, const handoff::NamedFds& kept, handoff::Participant owner) {
    for (const LivingQemu& each : all_of(folder, kept)) {
        if (each.participant == owner) continue;
        static_cast<void>(fd::pidfd_send_signal(each.pidfd.get(), SIGKILL));
        pollfd polled{each.pidfd.get(), POLLIN, 0};
        while (::poll(&polled, 1, -1) < 0 && errno == EINTR) {
        }
    }
}

void end_waiting_destination(const QemuFolder& folder) {
    const std::string path = folder.cpr_socket();
    if (::access(path.c_str(), F_OK) < 0) return;
    static_cast<void>(fd::unix_connect(path, SOCK_STREAM, Deadline::after(kConnectTime)));
}

} // namespace liveupdate::supervisor::qemu
