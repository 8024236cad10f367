#include "supervisor/vnc_config.hpp"

#include <doctest/doctest.h>

using namespace liveupdate;
using namespace liveupdate::supervisor;

TEST_CASE("a display is a port of the host, or a path") {
    CHECK(parse_vnc("127.0.0.1:1").value() == VncConfig{"", "127.0.0.1", 5901, ""});
    CHECK(parse_vnc(":0").value() == VncConfig{"", "", 5900, ""});
    CHECK(parse_vnc("[::1]:59635").value() == VncConfig{"", "::1", 65535, ""});
    CHECK(parse_vnc("unix:/run/a:1").value() == VncConfig{"/run/a:1", "", 0, ""});
}

TEST_CASE("the options behind a display are QEMU's") {
    CHECK(parse_vnc("localhost:7,password-secret=s,share=ignore").value().options ==
          "password-secret=s,share=ignore");
    CHECK(parse_vnc("unix:/run/vnc,lossy").value() == VncConfig{"/run/vnc", "", 0, "lossy"});
}

TEST_CASE("a display that cannot be moved, or is none, is refused in words") {
    for (const char* text : {"", "1", "localhost", ":", ":x", ":-1", ":59636", ":1 ", "unix:", "unix:vnc"}) {
        const auto refused = parse_vnc(text);
        REQUIRE_MESSAGE(!refused, text);
        CHECK_MESSAGE(refused.error().message.find("127.0.0.1:1") != std::string::npos, text);
    }
    for (const char* name : {"to=9", "websocket=on", "websocket", "reverse=on", "vnc=:2"}) {
        const auto refused = parse_vnc(":1,share=ignore," + std::string(name));
        REQUIRE_MESSAGE(!refused, name);
        CHECK_MESSAGE(refused.error().message.find("cannot carry over") != std::string::npos, name);
    }
}

TEST_CASE("a display is told as it is written") {
    for (const char* text : {"127.0.0.1:1", ":0", "[::1]:4", "unix:/run/vnc"})
        CHECK(to_string(parse_vnc(text).value()) == text);
}
