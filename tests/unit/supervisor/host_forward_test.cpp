#include "supervisor/host_forward.hpp"

#include <doctest/doctest.h>

using namespace liveupdate;
using namespace liveupdate::supervisor;

TEST_CASE("a forwarded port is told and read as QEMU does") {
    CHECK(parse_host_forward("tcp:127.0.0.1:2222-:22").value() ==
          HostForward{Transport::kTcp, "127.0.0.1", 2222, "", 22});
    CHECK(parse_host_forward("udp::5353-10.0.2.16:53").value() ==
          HostForward{Transport::kUdp, "", 5353, "10.0.2.16", 53});
    CHECK(
        parse_host_forward("tcp:0.0.0.0:65535-:1").value() == HostForward{Transport::kTcp, "", 65535, "", 1});
    for (const char* text : {"tcp:127.0.0.1:2222-:22", "udp::5353-10.0.2.16:53", "tcp::1-:1"})
        CHECK(to_string(parse_host_forward(text).value()) == text);
}

TEST_CASE("a port that QEMU could not forward is refused in words") {
    for (const char* text :
        {"", "tcp", "2222-:22", ":127.0.0.1:2222-:22", "sctp::2222-:22", "TCP::2222-:22", "tcp:2222-:22",
            "tcp::-:22", "tcp::0-:22", "tcp::65536-:22", "tcp::2222-22", "tcp::2222-:", "tcp::2222-:0",
            "tcp::2222:22", "tcp::2222-:22 ", "tcp::+1-:22", "tcp::2222-:22,hostfwd=tcp::1-:1",
            "tcp:localhost:2222-:22", "tcp:127.1:2222-:22", "tcp:[::1]:2222-:22", "tcp::2222-guest:22",
            "tcp::2222-:22-", "unix:/a-:22", "tcp::2222-2222-:22"}) {
        const auto refused = parse_host_forward(text);
        REQUIRE_MESSAGE(!refused, text);
        CHECK_MESSAGE(refused.error().message.find("tcp:127.0.0.1:2222-:22") != std::string::npos, text);
    }
}

TEST_CASE("two forwards are at one place whatever they lead to") {
    const auto same = [](const char* one, const char* other) {
        return at_same_place(parse_host_forward(one).value(), parse_host_forward(other).value());
    };
    CHECK(same("tcp::2222-:22", "tcp:0.0.0.0:2222-10.0.2.16:80"));
    CHECK(!same("tcp::2222-:22", "udp::2222-:22"));
    CHECK(!same("tcp::2222-:22", "tcp::2223-:22"));
    CHECK(same("tcp::2222-:22", "tcp:127.0.0.1:2222-:22")); // every address is that one, too
    CHECK(same("tcp:127.0.0.1:2222-:22", "tcp::2222-:22"));
    CHECK(!same("tcp:127.0.0.2:2222-:22", "tcp:127.0.0.1:2222-:22"));
}
