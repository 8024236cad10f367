// Needs the right to make network namespaces and devices in them.
#include "supervisor/tap.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <optional>

#include "handoff/base/fd.hpp"

using namespace liveupdate;
using namespace liveupdate::supervisor;

namespace {

// The calling thread is in a network namespace of its own meanwhile.
class OwnNetwork {
public:
    OwnNetwork() : before_(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)) {
        if (!before_ || ::unshare(CLONE_NEWNET) < 0) {
            before_.reset();
            MESSAGE("SKIPPED: no network namespace can be made here");
        } else if (!make_tap("one", 0)) {
            MESSAGE("SKIPPED: /dev/net/tun makes no tap device here");
            made_ = false;
        }
    }
    ~OwnNetwork() {
        if (before_) ::setns(before_.get(), CLONE_NEWNET);
    }
    explicit operator bool() const { return before_ && made_; }

    // As `ip tuntap add` does.
    static bool make_tap(const std::string& name, int more_flags) {
        UniqueFd tap(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
        ifreq request{};
        std::strcpy(request.ifr_name, name.c_str());
        request.ifr_flags = static_cast<short>(IFF_TAP | IFF_NO_PI | more_flags);
        return tap && ::ioctl(tap.get(), TUNSETIFF, &request) == 0 &&
               ::ioctl(tap.get(), TUNSETPERSIST, 1ul) == 0;
    }

    static void bring_up(const std::string& name) {
        const UniqueFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
        ifreq request{};
        std::strcpy(request.ifr_name, name.c_str());
        request.ifr_flags = IFF_UP;
        REQUIRE(::ioctl(socket.get(), SIOCSIFFLAGS, &request) == 0);
    }

private:
    UniqueFd before_;
    bool made_ = true;
};

std::string error_of(const std::string& name, unsigned queues) {
    const auto tap = open_tap(name, queues, TapHeaders::kVirtio);
    return tap ? "opened" : tap.error().message;
}

} // namespace

TEST_CASE("a tap is opened with headers, without waiting, and with the host's MTU") {
    const OwnNetwork network;
    if (!network) return;
    const auto tap = open_tap("one", 1, TapHeaders::kVirtio);
    REQUIRE_MESSAGE(tap, (tap ? "" : tap.error().message));
    REQUIRE(tap->queues.size() == 1);
    const int queue = tap->queues[0].get();
    ifreq request{};
    REQUIRE(::ioctl(queue, TUNGETIFF, &request) == 0);
    CHECK(std::string(request.ifr_name) == "one");
    CHECK((request.ifr_flags & (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)) == (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR));
    int header = 0;
    REQUIRE(::ioctl(queue, TUNGETVNETHDRSZ, &header) == 0);
    CHECK(header == 12);
    CHECK((::fcntl(queue, F_GETFL) & O_NONBLOCK) != 0);
    CHECK((::fcntl(queue, F_GETFD) & FD_CLOEXEC) != 0);
    CHECK(tap->mtu == 1500);
    CHECK((tap->offloads & 0x1f) == 0x1f);
}

TEST_CASE("what is in the way of a tap is told in a sentence, with what to do") {
    const OwnNetwork network;
    if (!network) return;
    CHECK(error_of("none", 2) ==
          "there is no network device none; make it with `ip tuntap add none mode tap multi_queue`");
    CHECK(error_of("lo", 1) == "lo is no tap device for 1 queue; make it with `ip tuntap add lo mode tap`");
    CHECK(error_of("one", 2) ==
          "one is no tap device for 2 queues; make it with `ip tuntap add one mode tap multi_queue`");
    const auto first = open_tap("one", 1, TapHeaders::kVirtio);
    REQUIRE(first);
    const auto second = open_tap("one", 1, TapHeaders::kVirtio);
    REQUIRE_FALSE(second);
    CHECK(second.error().code == ErrorCode::kBusy);
    CHECK(second.error().message ==
          "tap one is in use by another program; stop that, or give the guest another tap");
}

TEST_CASE("a tap with several queues has one owner too") {
    const OwnNetwork network;
    if (!network) return;
    REQUIRE(OwnNetwork::make_tap("many", IFF_MULTI_QUEUE));
    OwnNetwork::bring_up("many");
    {
        const auto tap = open_tap("many", 3, TapHeaders::kVirtio);
        REQUIRE_MESSAGE(tap, (tap ? "" : tap.error().message));
        CHECK(tap->queues.size() == 3);
        CHECK(error_of("many", 2).find("in use by another program") != std::string::npos);
    }
    CHECK(error_of("many", 8) == "opened");
}
