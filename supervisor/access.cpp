#include "supervisor/access.hpp"

#include <grp.h>
#include <pwd.h>
#include <sys/socket.h>

#include <algorithm>

namespace liveupdate::supervisor {
namespace {

constexpr size_t kLongestEntry = size_t{1} << 20; // of the user or group database

// Calls one of the get…_r functions with a buffer that grows until the entry fits.
template <typename Entry, typename Call>
bool look_up(Entry& entry, std::vector<char>& buffer, Call call) {
    Entry* found = nullptr;
    for (buffer.resize(4096); buffer.size() <= kLongestEntry; buffer.resize(buffer.size() * 4)) {
        const int problem = call(&entry, buffer.data(), buffer.size(), &found);
        if (problem != ERANGE) return problem == 0 && found;
    }
    return false;
}

} // namespace

Result<AccessPolicy> resolve_access(const std::string& owner, const std::string& group) {
    AccessPolicy policy;
    std::vector<char> buffer;
    if (!owner.empty()) {
        passwd entry{};
        if (!look_up(entry, buffer, [&](auto... rest) { return ::getpwnam_r(owner.c_str(), rest...); }))
            return Error(ErrorCode::kInvalid,
                "no user '" + owner + "' on this host; correct 'owner' in [policy] or make the user");
        policy.owner = entry.pw_uid;
    }
    if (!group.empty()) {
        ::group entry{};
        if (!look_up(entry, buffer, [&](auto... rest) { return ::getgrnam_r(group.c_str(), rest...); }))
            return Error(ErrorCode::kInvalid,
                "no group '" + group + "' on this host; correct 'group' in [policy] or run groupadd " +
                    group);
        policy.group = entry.gr_gid;
        policy.group_name = group;
    }
    return policy;
}

Result<PeerCredentials> peer_credentials(int socket) {
    ucred credentials{};
    socklen_t size = sizeof(credentials);
    if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0)
        return Error::from_errno("ask for the peer's credentials");
    return PeerCredentials{credentials.pid, credentials.uid, credentials.gid};
}

std::vector<gid_t> groups_of(uid_t uid, gid_t gid) {
    std::vector<char> buffer;
    passwd entry{};
    std::vector<gid_t> groups{gid};
    if (!look_up(entry, buffer, [&](auto... rest) { return ::getpwuid_r(uid, rest...); })) return groups;
    int count = 64;
    groups.resize(static_cast<size_t>(count));
    if (::getgrouplist(entry.pw_name, gid, groups.data(), &count) < 0) {
        groups.resize(static_cast<size_t>(count)); // now it says how many there are
        if (::getgrouplist(entry.pw_name, gid, groups.data(), &count) < 0) return {gid};
    }
    groups.resize(static_cast<size_t>(count));
    return groups;
}

Result<void> check_access(
    const AccessPolicy& policy, const PeerCredentials& peer, uid_t own, const GroupLookup& groups) {
    if (peer.uid == 0 || peer.uid == own || peer.uid == policy.owner) return {};
    if (policy.group) {
        if (peer.gid == *policy.group) return {};
        const auto all = groups(peer.uid, peer.gid);
        if (std::find(all.begin(), all.end(), *policy.group) != all.end()) return {};
    }
    const std::string user = "user " + std::to_string(peer.uid) + " may not use this VM's control socket; ";
    return Error(ErrorCode::kSystem,
        user + (policy.group ? "become a member of group '" + policy.group_name + "', or use root"
                             : "no group is configured in [policy], so only root and the owner may"),
        EACCES);
}

} // namespace liveupdate::supervisor
