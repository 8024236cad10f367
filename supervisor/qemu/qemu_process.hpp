// One QEMU process of a guest: its process, its monitor, and what it was started with.
//
// Everything that a later supervisor must find again is in the process itself: descriptors by number, the
// command line, and its monitor's socket, whose name has the process's number in the life of the guest.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "handoff/baton.hpp"
#include "handoff/channel.hpp"
#include "supervisor/child_process.hpp"
#include "supervisor/open_binary.hpp"
#include "supervisor/qemu/adopted.hpp"
#include "supervisor/qemu/qmp.hpp"
#include "supervisor/record.hpp"

namespace liveupdate::supervisor::qemu {

// Numbers of the descriptors that every QEMU of a guest has from us.
inline constexpr int kRamFd = 10;
inline constexpr int kBatonFd = 11;          // QEMU does not know it: its supervisors do
inline constexpr int kLifeFd = 12;           // a shared flock(2): see LifeLock
inline constexpr int kConsoleFd = 13;        // for -add-fd, which closes it: the number is QEMU's then
inline constexpr int kConsoleSlaveFd = 14;   // so that a pty lives on without its supervisor
inline constexpr int kConsoleKeptFd = 15;    // the console again, for a later supervisor
inline constexpr int kFirstNetFd = 20;       // taps, one each
inline constexpr int kFirstListeningFd = 40; // of devices that listen: listening_plan.hpp

// The folder of a guest's monitors: mode 0700, since who speaks to a monitor owns the guest.
class MonitorFolder {
public:
    explicit MonitorFolder(std::string path) : path_(std::move(path)) {}
    const std::string& path() const { return path_; }

    Result<void> make() const;
    std::string socket(handoff::Participant participant) const;
    std::string life_file() const { return path_ + "/life"; }
    std::string migration_socket() const { return path_ + "/migration.sock"; }
    std::string cpr_socket() const { return path_ + "/cpr.sock"; }
    // Where the participants have, or had, a monitor; `kept` by a service manager, which may lie here no
    // more.
    struct Monitor {
        handoff::Participant participant;
        std::string path;
    };
    std::vector<Monitor> monitors(const handoff::NamedFds& kept) const;

    // What `-qmp` of a participant is followed by; and whose it is, when it is one of this folder's.
    std::string option(handoff::Participant participant) const;
    std::optional<handoff::Participant> whose_option(std::string_view argument) const;

    // A descriptor for a QEMU that is about to be started: as long as any process has one of these open,
    // nobody_lives() is false.
    Result<UniqueFd> life() const;
    // Waits until the deadline for the end of every QEMU of this guest, those included that have no monitor
    // yet.
    Result<bool> nobody_lives(Deadline deadline) const;

private:
    std::string path_;
};

// Where a destination of Role::kCpr listens, as QMP's `migrate` takes it.
nlohmann::json migration_channels(const MonitorFolder& folder);

class QemuProcess {
public:
    QemuProcess() = default;

    // Starts `binary`, stopped, with the guest's arguments and those of one process, and connects to its
    // monitor. Errors name the binary and carry its last words. kIncoming waits to be told where the guest
    // comes from; kCpr listens at the folder's sockets, and its monitor is there only once the source has
    // begun to migrate: connect() is then the caller's to call.
    enum class Role { kFirst, kIncoming, kCpr };
    static Result<QemuProcess> spawn(const OpenBinary& binary,
        const std::vector<std::string>& guest_arguments, Role role, handoff::Participant participant,
        const MonitorFolder& folder, const std::vector<ChildFd>& guest_fds, Deadline deadline, int cancel_fd);
    // To the monitor of one that was started with kCpr. Errors as spawn()'s.
    Result<void> connect(Deadline deadline, int cancel_fd);
    // One that a former supervisor has started, or adopted. kNotFound: nobody listens at its monitor, or it
    // is no other's than somebody's who has nothing to do with the guest. On any other error it lives on.
    static Result<QemuProcess> find(
        const MonitorFolder::Monitor& at, const MonitorFolder& folder, Deadline deadline);
    // Whoever listens at `socket`, whoever has started it; with `expected` only that process, and nobody else
    // is sent anything. Errors as find()'s.
    static Result<QemuProcess> attach(const std::string& socket, handoff::Participant participant,
        Deadline deadline, const AdoptedQemu* expected = nullptr);

    explicit operator bool() const { return static_cast<bool>(process_); }
    bool alive() const { return process_.alive(); }
    QmpChannel& monitor() { return monitor_; }
    const QmpChannel& monitor() const { return monitor_; }
    // As QmpChannel's; the death of the process is told with its last words.
    Result<nlohmann::json> execute(
        const std::string& command, nlohmann::json arguments, Deadline deadline, int cancel_fd = -1);

    // Waits at most until the deadline for an end of its own accord; true when it has ended.
    bool await_end(Deadline deadline) { return process_.await_end(deadline); }
    // Ends it in order, killing it at the deadline.
    void end(Deadline deadline);
    // SIGKILL, and waits until every thread is gone. What it said before is in its monitor's events.
    void kill();
    void forget();

    pid_t pid() const { return process_.pid(); }
    int pidfd() const { return process_.pidfd(); }
    // O_PATH: its monitor's socket.
    int monitor_file() const { return monitor_file_.get(); }
    const std::string& how_it_ended() const { return process_.how_it_ended(); }
    handoff::Participant participant() const { return participant_; }
    const OpenBinary& binary() const { return binary_; }
    OpenBinary take_binary() { return std::move(binary_); }
    RecordedBinary recorded() const;
    uint64_t started_unix() const;

    // Started by somebody else, and without anything of ours: adopted.hpp.
    bool is_adopted() const { return adopted_arguments_.has_value(); }
    // What all QEMUs of this guest are started with, from its own command line.
    Result<std::vector<std::string>> guest_arguments() const;
    // A descriptor that it was given by that number.
    Result<UniqueFd> take_fd(int number) const;

private:
    Result<void> open_monitor(Deadline deadline, int cancel_fd);
    Result<void> await_cpr(const MonitorFolder& folder, Deadline deadline, int cancel_fd);
    Result<void> look_again(Deadline deadline, int cancel_fd);
    Error gone(const Error& error);

    ChildProcess process_;
    QmpChannel monitor_;
    UniqueFd monitor_file_;
    OpenBinary binary_;
    std::string socket_;
    std::optional<std::vector<std::string>> adopted_arguments_;
    handoff::Participant participant_ = 0;
};

} // namespace liveupdate::supervisor::qemu
