#include "supervisor/access.hpp"

#include <doctest/doctest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "handoff/base/fd.hpp"

using namespace liveupdate;
using namespace liveupdate::supervisor;

namespace {

constexpr uid_t kOwn = 500;
const AccessPolicy kGrouped{600, 70, "ops"};

std::vector<gid_t> no_groups(uid_t, gid_t gid) {
    return {gid};
}

bool allowed(const AccessPolicy& policy, PeerCredentials peer, const GroupLookup& groups = no_groups) {
    return check_access(policy, peer, kOwn, groups).has_value();
}

} // namespace

TEST_CASE("root, the supervisor's user and the owner may") {
    CHECK(allowed({}, {1, 0, 0}));
    CHECK(allowed({}, {1, kOwn, 1}));
    CHECK(allowed(kGrouped, {1, 600, 1}));
    CHECK_FALSE(allowed({}, {1, 600, 1}));
}

TEST_CASE("a member of the group may, by the primary and by a further group") {
    CHECK(allowed(kGrouped, {1, 1000, 70}, [](uid_t, gid_t) { return std::vector<gid_t>(); }));
    CHECK(allowed(kGrouped, {1, 1000, 1000}, [](uid_t, gid_t) { return std::vector<gid_t>{1000, 70}; }));
    CHECK_FALSE(allowed(kGrouped, {1, 1000, 1000}));
    CHECK_FALSE(allowed({}, {1, 1000, 70}));
}

TEST_CASE("who may not is told which group may") {
    const auto denied = check_access(kGrouped, {1, 1000, 1000}, kOwn, no_groups);
    REQUIRE_FALSE(denied.has_value());
    CHECK(denied.error().system_errno == EACCES);
    CHECK(denied.error().message ==
          "user 1000 may not use this VM's control socket; become a member of group 'ops', or use root");
    CHECK(check_access({}, {1, 1000, 1000}, kOwn, no_groups).error().message.find("no group is configured") !=
          std::string::npos);
}

TEST_CASE("names of users and groups are looked up, unknown ones refused in words") {
    CHECK(resolve_access("root", "root").value().group == gid_t{0});
    CHECK_FALSE(resolve_access("", "").value().owner.has_value());
    CHECK(resolve_access("", "no-such-group-x").error().message ==
          "no group 'no-such-group-x' on this host; correct 'group' in [policy] or run groupadd "
          "no-such-group-x");
    CHECK_FALSE(resolve_access("no-such-user-x", "").has_value());
}

TEST_CASE("the groups of a user hold the given one; a user without an entry has only that") {
    const auto of_root = groups_of(0, 4242);
    CHECK(std::find(of_root.begin(), of_root.end(), gid_t{4242}) != of_root.end());
    CHECK(groups_of(3999999999u, 4242) == std::vector<gid_t>{4242});
}

TEST_CASE("the peer's credentials are the kernel's") {
    auto pair = fd::socketpair(SOCK_STREAM);
    REQUIRE(pair.has_value());
    const auto peer = peer_credentials(pair->first.get());
    REQUIRE(peer.has_value());
    CHECK(peer->pid == ::getpid());
    CHECK(peer->uid == ::geteuid());
}
