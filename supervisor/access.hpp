// Who may use a VM's control socket.
#pragma once

#include <sys/types.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "handoff/base/result.hpp"

namespace liveupdate::supervisor {

// Root and the supervisor's own user always may.
struct AccessPolicy {
    std::optional<uid_t> owner;
    std::optional<gid_t> group;
    std::string group_name; // as configured, for sentences; empty without a group
};

// As the kernel tells them of the other end of a unix socket (SO_PEERCRED).
struct PeerCredentials {
    pid_t pid = 0;
    uid_t uid = 0;
    gid_t gid = 0;
};

// Looks the names of the configuration up; empty ones mean none. kInvalid when there is no such user or
// group.
Result<AccessPolicy> resolve_access(const std::string& owner, const std::string& group);

Result<PeerCredentials> peer_credentials(int socket);

// The groups of a user, the given one among them, from the user database.
std::vector<gid_t> groups_of(uid_t uid, gid_t gid);

using GroupLookup = std::function<std::vector<gid_t>(uid_t, gid_t)>;

// Nothing, or an error with system_errno EACCES whose sentence says who may. `own` is the supervisor's user.
Result<void> check_access(const AccessPolicy& policy, const PeerCredentials& peer, uid_t own,
    const GroupLookup& groups = groups_of);

} // namespace liveupdate::supervisor
