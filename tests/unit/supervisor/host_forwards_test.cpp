#include "supervisor/qemu/host_forwards.hpp"

#include <doctest/doctest.h>

using namespace liveupdate::supervisor;
using namespace liveupdate::supervisor::qemu;

TEST_CASE("what QEMU forwards is read out of all that its networks do") {
    // Of QEMU 7.2 and 10.0 alike; some connections left out.
    const auto found =
        read_usernet("Hub -1 (net0):\r\n"
                     "  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n"
                     "  TCP[ESTABLISHED]   17       10.0.2.15 41022        10.9.8.7   443     0     0\r\n"
                     "  TCP[HOST_FORWARD]  15       127.0.0.1 29222       10.0.2.15    22     0     0\r\n"
                     "  TCP[ESTABLISHED]   18       127.0.0.1 29222       10.0.2.15    22     0     0\r\n"
                     "  UDP[HOST_FORWARD]  13               *  5353       10.0.2.16    53     0     0\r\n"
                     "  UDP[236 sec]       19       10.0.2.15 48003        10.9.8.7    53     0     0\r\n"
                     "  ICMP[5 sec]        20       10.0.2.15     -        10.9.8.7     -     0     0\r\n"
                     "Hub -1 (#net012):\r\n"
                     "  TCP[HOST_FORWARD]  14               *    80       10.0.3.15  8080     0     0\r\n");
    REQUIRE(found.size() == 3);
    CHECK(found[0] == NetdevForward{"net0", {Transport::kTcp, "127.0.0.1", 29222, "10.0.2.15", 22}});
    CHECK(found[1] == NetdevForward{"net0", {Transport::kUdp, "", 5353, "10.0.2.16", 53}});
    CHECK(found[2] == NetdevForward{"#net012", {Transport::kTcp, "", 80, "10.0.3.15", 8080}});
}

TEST_CASE("what is no such text has no forwards in it") {
    for (const char* text : {"", "unknown command: 'info usernet'\r\n",
             "  TCP[HOST_FORWARD]  15  127.0.0.1 29222 10.0.2.15 22 0 0\r\n",
             "Hub -1 (net0):\r\nHub -1 (a tcp::1-:1):\r\n  TCP[HOST_FORWARD]  15  * 29222 10.0.2.15 22 0 "
             "0\r\n",
             "Hub -1 (net0):\r\n  TCP[HOST_FORWARD]  15\r\n",
             "Hub -1 (net0):\r\n  TCP[HOST_FORWARD]  15  127.0.0.1 99999 10.0.2.15 22 0 0\r\n",
             "Hub -1 (net0):\r\n  TCP[HOST_FORWARD]  15  evil;rm 29222 10.0.2.15 22 0 0\r\n"})
        CHECK_MESSAGE(read_usernet(text).empty(), text);
}
