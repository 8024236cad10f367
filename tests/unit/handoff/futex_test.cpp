#include "handoff/base/futex.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <new>
#include <thread>

#include "handoff/shared_memory.hpp"
#include "tests/unit/handoff/support.hpp"

namespace liveupdate::handoff {

TEST_CASE("a futex wait ends by a change, by a wake and by its deadline") {
    for (const FutexScope scope : {FutexScope::kPrivate, FutexScope::kShared}) {
        std::atomic<uint32_t> word{1};
        futex_wait(&word, 0, Deadline::never(), scope); // is not 0 any more
        futex_wait(&word, 1, soon(), scope);
        std::thread waker([&] {
            word = 2;
            futex_wake_all(&word, scope);
        });
        while (word == 1)
            futex_wait(&word, 1, Deadline::never(), scope);
        waker.join();
        CHECK(word == 2);
    }
}

// As two processes do: a private futex would go by the address, and never wake.
TEST_CASE("a shared futex wakes who has the same page mapped elsewhere") {
    const UniqueFd file = must(create_sealed_memfd("word", 4096));
    const auto here = must(SharedMapping::map(file.get(), 0, 4096, MapMode::kShared));
    const auto there = must(SharedMapping::map(file.get(), 0, 4096, MapMode::kShared));
    auto& word = *new (here.data()) std::atomic<uint32_t>(1);
    std::thread waker([&] {
        reinterpret_cast<std::atomic<uint32_t>*>(there.data())->store(2);
        futex_wake_all(there.data(), FutexScope::kShared);
    });
    while (word == 1)
        futex_wait(&word, 1, Deadline::never(), FutexScope::kShared);
    waker.join();
    CHECK(word == 2);
}

} // namespace liveupdate::handoff
