// One QEMU process of a guest: its process, its monitor, and what it was started with.
//
// Everything that a later supervisor must find again is in the process itself: descriptors by number, our
// end of its monitor among them, and the command line, which has its number in the life of the guest.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "handoff/baton.hpp"
#include "supervisor/child_process.hpp"
#include "supervisor/open_binary.hpp"
#include "supervisor/qemu/adopted.hpp"
#include "supervisor/qemu/living_qemus.hpp"
#include "supervisor/qemu/qemu_folder.hpp"
#include "supervisor/qemu/qmp.hpp"
#include "supervisor/record.hpp"

namespace liveupdate::supervisor::qemu {

class QemuProcess {
public:
    QemuProcess() = default;

    // Starts `binary`, stopped, with the guest's arguments and those of one process, and waits for its
    // monitor. Errors name the binary and carry its last words. kIncoming waits to be told where the guest
    // comes from; kCpr listens at the folder's sockets, and its monitor speaks only once the source has
    // begun to migrate: greet() is then the caller's to call.
    enum class Role { kFirst, kIncoming, kCpr };
    static Result<QemuProcess> spawn(const OpenBinary& binary,
        const std::vector<std::string>& guest_arguments, Role role, handoff::Participant participant,
        const QemuFolder& folder, const std::vector<ChildFd>& guest_fds, Deadline deadline, int cancel_fd);
    // Waits for the monitor of one that was started with kCpr. Errors as spawn()'s.
    Result<void> greet(Deadline deadline, int cancel_fd);
    // One that a former supervisor has started. kNotFound: it has ended. On any other error it lives on.
    static Result<QemuProcess> find(LivingQemu living, Deadline deadline);
    // The one that was adopted, at the monitor that the folder has a link to, which another process may
    // listen at by now: that is sent nothing. kNotFound: the QEMU does not listen there, or has ended.
    static Result<QemuProcess> find(const AdoptedQemu& adopted, const QemuFolder& folder, Deadline deadline);
    // Whoever listens at `socket`, whoever has started it; with `expected` only that process. Errors as
    // find()'s.
    static Result<QemuProcess> attach(
        const std::string& socket, Deadline deadline, const AdoptedQemu* expected = nullptr);

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
    // What a later supervisor goes on with: our end of its monitor. -1 of one that was adopted, whose monitor
    // is connected to anew.
    int session_file() const;
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
    Result<void> await_greeting(Deadline deadline, int cancel_fd);
    Result<void> await_cpr(const QemuFolder& folder, Deadline deadline, int cancel_fd);
    Result<void> take_process(pid_t pid, UniqueFd pidfd);
    Result<void> look_again(Deadline deadline, int cancel_fd);
    Error gone(const Error& error);

    ChildProcess process_;
    QmpChannel monitor_;
    UniqueFd monitor_end_; // until it has become monitor_
    OpenBinary binary_;
    std::string adopted_monitor_; // the link to it
    std::optional<std::vector<std::string>> adopted_arguments_;
    handoff::Participant participant_ = 0;
};

} // namespace liveupdate::supervisor::qemu
