#include "supervisor/cli/rollout.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <thread>

using namespace liveupdate::supervisor;
using namespace liveupdate::supervisor::cli;

namespace {

// Keeps who was begun in which order and how many ran at once.
struct Observed {
    std::mutex mutex;
    std::vector<size_t> begun;
    size_t running = 0;
    size_t most = 0;

    RolloutHooks hooks(
        std::function<ExitCode(size_t)> code, std::function<bool()> interrupted = [] { return false; }) {
        return {[this, code = std::move(code)](size_t index) {
                    {
                        const std::lock_guard lock(mutex);
                        begun.push_back(index);
                        most = std::max(most, ++running);
                    }
                    std::this_thread::sleep_for(std::chrono::milliseconds(5));
                    const std::lock_guard lock(mutex);
                    --running;
                    return code(index);
                },
            std::move(interrupted)};
    }
};

ExitCode done(size_t) {
    return ExitCode::kDone;
}

} // namespace

TEST_CASE("all are updated, no more at once than allowed") {
    Observed seen;
    const auto codes = run_rollout(10, {3, 0, AfterFailure::kStop}, seen.hooks(done));
    CHECK(std::count(codes.begin(), codes.end(), ExitCode::kDone) == 10);
    CHECK(seen.most <= 3);
    CHECK(seen.most >= 2);
}

TEST_CASE("the others wait until every canary has ended") {
    Observed seen;
    size_t canaries_done = 0;
    bool early = false;
    const auto codes = run_rollout(6, {4, 2, AfterFailure::kStop}, seen.hooks([&](size_t index) {
        if (index < 2)
            ++canaries_done;
        else
            early = early || canaries_done < 2;
        return ExitCode::kDone;
    }));
    CHECK_FALSE(early);
    CHECK(codes.back() == ExitCode::kDone);
}

TEST_CASE("after a canary has failed nobody else is begun, whatever the rule for later failures") {
    for (const AfterFailure rule : {AfterFailure::kStop, AfterFailure::kGoOn}) {
        Observed seen;
        const auto codes =
            run_rollout(5, {1, 1, rule}, seen.hooks([](size_t) { return ExitCode::kRolledBack; }));
        CHECK(seen.begun == std::vector<size_t>{0});
        CHECK(codes[0] == ExitCode::kRolledBack);
        for (size_t i = 1; i < 5; ++i)
            CHECK_FALSE(codes[i].has_value());
    }
}

TEST_CASE("after a failure no new one is begun, unless told to go on") {
    const auto second_fails = [](size_t index) { return index == 1 ? ExitCode::kRefused : ExitCode::kDone; };
    Observed stopping;
    run_rollout(5, {1, 0, AfterFailure::kStop}, stopping.hooks(second_fails));
    CHECK(stopping.begun == std::vector<size_t>{0, 1});
    Observed going_on;
    run_rollout(5, {1, 0, AfterFailure::kGoOn}, going_on.hooks(second_fails));
    CHECK(going_on.begun == std::vector<size_t>{0, 1, 2, 3, 4});
}

TEST_CASE("nothing to do is no failure") {
    Observed seen;
    run_rollout(3, {1, 1, AfterFailure::kStop}, seen.hooks([](size_t) { return ExitCode::kNothingToDo; }));
    CHECK(seen.begun.size() == 3);
}

TEST_CASE("after an interrupt no new one is begun") {
    Observed seen;
    bool interrupted = false;
    const auto codes = run_rollout(4, {1, 0, AfterFailure::kStop},
        seen.hooks(
            [&](size_t index) {
                interrupted = index == 1;
                return ExitCode::kDone;
            },
            [&] { return interrupted; }));
    CHECK(seen.begun == std::vector<size_t>{0, 1});
    CHECK_FALSE(codes[2].has_value());
}

TEST_CASE("more canaries than VMs are all of them, and none at all is no work") {
    Observed seen;
    CHECK(run_rollout(2, {4, 9, AfterFailure::kStop}, seen.hooks(done)).size() == 2);
    CHECK(seen.begun.size() == 2);
    CHECK(run_rollout(0, {}, seen.hooks(done)).empty());
}
