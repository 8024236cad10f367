#include "supervisor/units.hpp"

#include <doctest/doctest.h>

#include <array>

using namespace liveupdate::supervisor;
using namespace std::chrono_literals;

TEST_CASE("sizes are powers of 1024") {
    CHECK(parse_size("0").value() == 0);
    CHECK(parse_size("4096").value() == 4096);
    CHECK(parse_size("2048K").value() == 2u << 20);
    CHECK(parse_size("512M").value() == 512u << 20);
    CHECK(parse_size("4G").value() == uint64_t{4} << 30);
    CHECK(parse_size("18446744073709551615").value() == UINT64_MAX);
}

TEST_CASE("what is no size is refused in words") {
    for (const char* text :
        {"", "M", "-1M", "1.5G", "512MB", "512 M", "0x10", "512m", "18446744073709551616"}) {
        CAPTURE(text);
        const auto size = parse_size(text);
        REQUIRE_FALSE(size.has_value());
        CHECK(size.error().message.find("'" + std::string(text) + "' is not a size") == 0);
    }
    CHECK_FALSE(parse_size("16777216T").has_value());
    CHECK(parse_size("16777215T").has_value());
}

TEST_CASE("durations take a number and a unit") {
    CHECK(parse_duration("500us").value() == 500us);
    CHECK(parse_duration("500ms").value() == 500ms);
    CHECK(parse_duration("2s").value() == 2s);
    CHECK(parse_duration("1.5s").value() == 1500ms);
    CHECK(parse_duration("1m").value() == 1min);
    CHECK(parse_duration("0s").value() == 0s);
    for (const char* text :
        {"", "2", "s", "-2s", "2 s", "2S", "nan", "infs", "nans", "1e3s", "9999999999h"}) {
        CAPTURE(text);
        CHECK_FALSE(parse_duration(text).has_value());
    }
}

TEST_CASE("sizes and durations are shown for people") {
    CHECK(exact_size(512u << 20) == "512M");
    CHECK(exact_size(4096) == "4K");
    CHECK(exact_size(10000) == "10000");
    CHECK(human_size(512u << 20) == "512 MiB");
    CHECK(human_size(uint64_t{3} << 29) == "1.5 GiB");
    CHECK(human_size(17) == "17 B");
    CHECK(human_duration(17us) == "17 us");
    CHECK(human_duration(412us) == "0.41 ms");
    CHECK(human_duration(100ms) == "100 ms");
    CHECK(human_duration(2s) == "2.0 s");
    CHECK(human_duration(2h + 3min) == "2h 3min");
    CHECK(human_duration(50h) == "2d 2h");
}

TEST_CASE("the nearest word is suggested only when it is near") {
    constexpr std::array<std::string_view, 3> kWords = {"vcpus", "kernel", "blackout_limit"};
    const auto nearest = [&](std::string_view word) {
        return nearest_word(word, kWords.data(), kWords.size());
    };
    CHECK(nearest("vcpu") == "vcpus");
    CHECK(nearest("kernle") == "kernel");
    CHECK(nearest("blackout") == "blackout_limit");
    CHECK(nearest("colour") == "");
    CHECK(nearest("x") == "");
}
