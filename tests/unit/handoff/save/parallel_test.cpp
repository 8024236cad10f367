#include "handoff/save/parallel.hpp"

#include <doctest/doctest.h>

#include <set>

namespace liveupdate::handoff::save {
namespace {

struct Run {
    std::set<uint64_t> items;
    unsigned bodies = 0;
};

Run run(unsigned threads, uint64_t count) {
    Work work(count);
    Run all;
    std::mutex mutex;
    const auto done = in_threads(threads, work, [&]() -> Result<void> {
        std::set<uint64_t> mine;
        for (uint64_t item = 0; work.take(item);)
            mine.insert(item);
        const std::lock_guard lock(mutex);
        ++all.bodies;
        all.items.merge(mine);
        return {};
    });
    CHECK(done);
    return all;
}

} // namespace

TEST_CASE("work is done by no more threads than find something to do") {
    CHECK(run(4, 0).bodies == 0); // not even a queue is made, while a guest stands still
    CHECK(run(4, 1).bodies == 1);
    CHECK(run(4, 3).bodies == 3);
    CHECK(run(4, 1000).bodies == 4);
    CHECK(run(1, 1000).bodies == 1);
    for (const uint64_t count : {0, 1, 3, 1000})
        CHECK(run(4, count).items.size() == count);
}

TEST_CASE("the first thread that fails ends the work of all") {
    Work work(UINT64_MAX / 2); // nobody would come to its end
    const auto done = in_threads(4, work, [&]() -> Result<void> {
        for (uint64_t item = 0; work.take(item);)
            if (item == 7) return Error(ErrorCode::kRefused, "seven");
        return {};
    });
    REQUIRE(!done);
    CHECK(done.error().message == "seven");
    uint64_t item = 0;
    CHECK(!work.take(item));
}

} // namespace liveupdate::handoff::save
