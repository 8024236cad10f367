#include "handoff/base/result.hpp"

#include <doctest/doctest.h>

#include <memory>
#include <set>

#include "handoff/base/deadline.hpp"

namespace liveupdate {
namespace {

Result<int> parse_digit(char c) {
    if (c < '0' || c > '9') return Error(ErrorCode::kInvalid, std::string("'") + c + "' is no digit");
    return c - '0';
}

Result<void> check_digit(char c) {
    TRY(parse_digit(c));
    return {};
}

Result<int> sum(char a, char b) {
    TRY_ASSIGN(const int left, parse_digit(a));
    TRY_ASSIGN(const int right, parse_digit(b));
    return left + right;
}

} // namespace

TEST_CASE("a result holds the value or the error") {
    const auto good = parse_digit('7');
    REQUIRE(good);
    CHECK(*good == 7);
    const auto bad = parse_digit('x');
    REQUIRE_FALSE(bad);
    CHECK(bad.error().code == ErrorCode::kInvalid);
    CHECK(bad.error().message == "'x' is no digit");
}

TEST_CASE("TRY passes the first error on and goes on without one") {
    CHECK(check_digit('1'));
    CHECK_FALSE(check_digit('?'));
    CHECK(*sum('4', '5') == 9);
    CHECK(sum('4', 'y').error().message == "'y' is no digit");
    CHECK(sum('x', 'y').error().message == "'x' is no digit");
}

TEST_CASE("context reads from the outermost frame to the innermost") {
    const auto failed = parse_digit('x').context("parse").context("start");
    CHECK(failed.error().message == "start: parse: 'x' is no digit");
    CHECK(*parse_digit('3').context("never seen") == 3);
    Result<void> nothing = check_digit('x').context("check");
    CHECK(nothing.error().message == "check: 'x' is no digit");
}

TEST_CASE("a result moves what cannot be copied") {
    Result<std::unique_ptr<int>> result(std::make_unique<int>(5));
    const std::unique_ptr<int> taken = std::move(result).value();
    CHECK(*taken == 5);
}

TEST_CASE("an error from errno has the call, the words and the number") {
    errno = ENOENT;
    const Error error = Error::from_errno("open /nowhere");
    CHECK(error.code == ErrorCode::kSystem);
    CHECK(error.system_errno == ENOENT);
    CHECK(error.message == "open /nowhere: No such file or directory");
}

TEST_CASE("every error code has a word of its own") {
    std::set<std::string_view> words;
    for (int code = 0; code <= static_cast<int>(ErrorCode::kBusy); ++code)
        words.insert(to_string(static_cast<ErrorCode>(code)));
    CHECK(words.size() == static_cast<size_t>(ErrorCode::kBusy) + 1);
    CHECK_FALSE(words.contains("unknown"));
}

TEST_CASE("a deadline has passed or has time left, and travels as nanoseconds") {
    CHECK(Deadline::after(std::chrono::nanoseconds(-1)).passed());
    CHECK(Deadline::after(std::chrono::nanoseconds(-1)).poll_ms() == 0);
    const Deadline later = Deadline::after(std::chrono::hours(1));
    CHECK_FALSE(later.passed());
    CHECK(Deadline::at_ns(later.ns()).ns() == later.ns());
    CHECK(later.earlier(Deadline::never()).ns() == later.ns());
    CHECK(Deadline::never().earlier(later).ns() == later.ns());
}

TEST_CASE("a deadline that never comes makes poll wait without a limit") {
    CHECK(Deadline::never().poll_ms() == -1);
    CHECK_FALSE(Deadline::never().passed());
}

TEST_CASE("a span too long to be added to the clock never ends") {
    CHECK_FALSE(Deadline::after(std::chrono::nanoseconds::max()).passed());
    CHECK(Deadline::after(std::chrono::nanoseconds::max()).poll_ms() == -1);
}

TEST_CASE("a time beyond the clock's range, as a peer may send it, never comes") {
    CHECK_FALSE(Deadline::at_ns(UINT64_MAX).passed());
    CHECK(Deadline::at_ns(UINT64_MAX).poll_ms() == -1);
}

} // namespace liveupdate
