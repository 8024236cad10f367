// Moves a process out of its service's control group into a scope of its own, so that nothing that stops,
// kills or restarts the service takes it along.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"

namespace liveupdate::systemd {

enum class Manager { kSystem, kUser };

struct ServiceUnit {
    std::string name; // "liveupdate@web1.service"
    Manager manager{};
};

// The service in whose control group the process is; 0 is this one.
std::optional<ServiceUnit> service_of(pid_t pid);
// The service that this process is the main process of. None when no manager started it as one.
std::optional<ServiceUnit> own_unit();

struct ScopeRequest {
    std::string name; // ends in .scope; no such unit exists yet
    std::string description;
    std::string slice;   // empty: the manager's default
    ServiceUnit service; // of which the process came; the host's shutdown stops this first, then the scope
};

// Asks the manager over D-Bus and waits until the process is in the scope. kNotFound when there is no bus.
Result<void> move_to_scope(pid_t pid, const ScopeRequest& request, Deadline deadline);

} // namespace liveupdate::systemd
