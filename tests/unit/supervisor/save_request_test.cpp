#include "supervisor/save_request.hpp"

#include <doctest/doctest.h>

namespace liveupdate::supervisor {
namespace {

TEST_CASE("a copy whose RAM has yet to come is refused, since it could not be told that it is one") {
    for (const char* from : {"/srv/saves/web1", "nbd+unix:///guest.save?socket=/run/nbd.sock"}) {
        RestoreRequest request;
        request.from = from;
        request.ram = RestoreRam::kLazy;
        CHECK(check(request));
        request.identity = Identity::kNew;
        const auto refused = check(request);
        REQUIRE_FALSE(refused);
        CHECK(refused.error().code == ErrorCode::kInvalid);
        CHECK(refused.error().message.find("--lazy") != std::string::npos);
        request.ram = RestoreRam::kEager;
        CHECK(check(request));
    }
}

} // namespace
} // namespace liveupdate::supervisor
