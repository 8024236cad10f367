#include "supervisor/exit_code.hpp"

#include <doctest/doctest.h>

using namespace liveupdate;
using namespace liveupdate::supervisor;

TEST_CASE("the numbers of the exit codes are what the documentation says") {
    CHECK(static_cast<int>(ExitCode::kDone) == 0);
    CHECK(static_cast<int>(ExitCode::kInternal) == 1);
    CHECK(static_cast<int>(ExitCode::kUsage) == 2);
    CHECK(static_cast<int>(ExitCode::kNothingToDo) == 3);
    CHECK(static_cast<int>(ExitCode::kRefused) == 4);
    CHECK(static_cast<int>(ExitCode::kRolledBack) == 5);
    CHECK(static_cast<int>(ExitCode::kFailed) == 6);
    CHECK(static_cast<int>(ExitCode::kLost) == 7);
    CHECK(static_cast<int>(ExitCode::kUnreachable) == 8);
    CHECK(static_cast<int>(ExitCode::kPermission) == 9);
    CHECK(static_cast<int>(ExitCode::kAborted) == 10);
}

TEST_CASE("every outcome has its exit code") {
    CHECK(exit_code(Outcome::kCompleted) == ExitCode::kDone);
    CHECK(exit_code(Outcome::kPlanned) == ExitCode::kDone);
    CHECK(exit_code(Outcome::kNothingToDo) == ExitCode::kNothingToDo);
    CHECK(exit_code(Outcome::kRefused) == ExitCode::kRefused);
    CHECK(exit_code(Outcome::kAbandoned) == ExitCode::kRolledBack);
    CHECK(exit_code(Outcome::kRolledBack) == ExitCode::kRolledBack);
    CHECK(exit_code(Outcome::kFailed) == ExitCode::kFailed);
    CHECK(exit_code(Outcome::kLost) == ExitCode::kLost);
}

TEST_CASE("of several VMs the worst counts, and a lost guest is the worst") {
    CHECK(worst(ExitCode::kNothingToDo, ExitCode::kDone) == ExitCode::kDone);
    CHECK(worst(ExitCode::kDone, ExitCode::kUnreachable) == ExitCode::kUnreachable);
    CHECK(worst(ExitCode::kRolledBack, ExitCode::kRefused) == ExitCode::kRolledBack);
    CHECK(worst(ExitCode::kFailed, ExitCode::kRolledBack) == ExitCode::kFailed);
    for (int code = 0; code <= 10; ++code) {
        CHECK(worst(static_cast<ExitCode>(code), ExitCode::kLost) == ExitCode::kLost);
        CHECK(worst(static_cast<ExitCode>(code), ExitCode::kNothingToDo) == static_cast<ExitCode>(code));
    }
}

TEST_CASE("errors without a record have exit codes by their kind") {
    CHECK(exit_code(Error(ErrorCode::kInvalid, "")) == ExitCode::kUsage);
    CHECK(exit_code(Error(ErrorCode::kNotFound, "")) == ExitCode::kUnreachable);
    CHECK(exit_code(Error(ErrorCode::kPeerGone, "")) == ExitCode::kUnreachable);
    CHECK(exit_code(Error(ErrorCode::kBusy, "")) == ExitCode::kRefused);
    CHECK(exit_code(Error(ErrorCode::kAborted, "")) == ExitCode::kAborted);
    CHECK(exit_code(Error(ErrorCode::kSystem, "", EACCES)) == ExitCode::kPermission);
    CHECK(exit_code(Error(ErrorCode::kSystem, "", EIO)) == ExitCode::kInternal);
}
