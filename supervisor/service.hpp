// The supervisor of one VM as a service: what its service manager is told, and what is left with the manager
// so that a successor of this process finds it again. docs/adr/0008 tells what for.
//
// Without a manager nothing is told and nothing kept, so callers need not ask.
#pragma once

#include <sys/types.h>

#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "handoff/channel.hpp"
#include "supervisor/shelter.hpp"
#include "systemd/scope.hpp"

namespace liveupdate::supervisor {

class Service {
public:
    // Once, while the process has one thread: takes what a predecessor has left. What nobody knows by its
    // name is closed, dropped from the manager's store and told in `warnings`.
    static Service of_this_process(std::string vm_name, std::vector<std::string>& warnings);
    Service(Service&& other) noexcept;
    Service& operator=(Service&&) = delete;
    ~Service() = default;

    // By name: "control", "baton", "previous", the RAM blocks' names, and for each VMM "vmm-PID", its pidfd,
    // and "session-PID", what a successor speaks to it through.
    handoff::NamedFds take_kept() { return std::move(kept_); }

    // From any thread, right after a VMM was started and before it is given anything: puts it into a scope of
    // its own, its pidfd and what a successor speaks to it through into the store. What fails leaves it in
    // the service's control group, with a warning: KillMode=process spares it there.
    void shelter(const StartedVmm& vmm);

    // Exactly these are kept from now on, and what shelter() has kept and is not among them is not. Returns
    // when the manager has them.
    void keep(const std::vector<handoff::FdToSend>& all);

    // STATUS=, when it has changed.
    void status(const std::string& text);
    void ready();
    void reloading();
    // True when the manager stops the service in order to start it again.
    bool is_being_restarted() const;
    // The manager shall wait for so long at least.
    void stopping(std::chrono::microseconds at_most);

private:
    explicit Service(std::string vm_name);
    struct FileId {
        dev_t device = 0;
        ino_t inode = 0;
        bool operator==(const FileId&) const = default;
    };

    void store(const handoff::FdToSend& file);

    const std::string vm_name_;
    std::optional<systemd::ServiceUnit> unit_;
    handoff::NamedFds kept_;
    std::mutex mutex_; // of what follows
    std::map<std::string, FileId> stored_;
    std::string status_;
};

} // namespace liveupdate::supervisor
