#include "systemd/event_loop.hpp"

#include <doctest/doctest.h>
#include <sys/socket.h>

#include <csignal>
#include <thread>
#include <vector>

#include "handoff/base/fd.hpp"

using namespace std::chrono_literals;
using liveupdate::Deadline;
using liveupdate::systemd::EventLoop;
using liveupdate::systemd::Source;

namespace {

std::unique_ptr<EventLoop> make_loop() {
    auto loop = EventLoop::create();
    REQUIRE(loop.has_value());
    return std::move(*loop);
}

std::pair<liveupdate::UniqueFd, liveupdate::UniqueFd> make_pair() {
    auto pair = liveupdate::fd::socketpair(SOCK_STREAM);
    REQUIRE(pair.has_value());
    return std::move(*pair);
}

} // namespace

TEST_CASE("run returns what stop was given") {
    auto loop = make_loop();
    loop->stop(7);
    const auto code = loop->run();
    REQUIRE(code.has_value());
    CHECK(*code == 7);
}

TEST_CASE("an fd that becomes readable calls its callback") {
    auto loop = make_loop();
    auto [near, far] = make_pair();
    uint32_t seen = 0;
    auto source = loop->add_io(near.get(), EPOLLIN, [&](uint32_t events) {
        seen = events;
        loop->stop();
    });
    REQUIRE(source.has_value());
    REQUIRE(liveupdate::fd::write_all(far.get(), "x", 1).has_value());
    REQUIRE(loop->run().has_value());
    CHECK((seen & EPOLLIN) != 0);
}

TEST_CASE("a destroyed source is not called, though its event is pending") {
    auto loop = make_loop();
    auto [near, far] = make_pair();
    int calls = 0;
    auto source = loop->add_io(near.get(), EPOLLIN, [&](uint32_t) { ++calls; });
    REQUIRE(source.has_value());
    REQUIRE(liveupdate::fd::write_all(far.get(), "x", 1).has_value());
    { const Source gone = std::move(*source); }
    auto timer = loop->add_timer(20ms, [&] { loop->stop(); });
    REQUIRE(loop->run().has_value());
    CHECK(calls == 0);
}

TEST_CASE("a callback may destroy its own source") {
    auto loop = make_loop();
    auto [near, far] = make_pair();
    Source own;
    int calls = 0;
    std::string captured = "long enough not to lie inside the string itself";
    auto source = loop->add_io(near.get(), EPOLLIN, [&, captured](uint32_t) {
        own.reset();
        ++calls;
        CHECK(captured.size() == 47); // still there: the function outlives its source
    });
    REQUIRE(source.has_value());
    own = std::move(*source);
    REQUIRE(liveupdate::fd::write_all(far.get(), "x", 1).has_value());
    auto timer = loop->add_timer(20ms, [&] { loop->stop(); });
    REQUIRE(loop->run().has_value());
    CHECK(calls == 1);
    CHECK_FALSE(own.active());
}

TEST_CASE("set_events turns reading off and on") {
    auto loop = make_loop();
    auto [near, far] = make_pair();
    int calls = 0;
    auto source = loop->add_io(near.get(), 0, [&](uint32_t) {
        ++calls;
        loop->stop();
    });
    REQUIRE(source.has_value());
    REQUIRE(liveupdate::fd::write_all(far.get(), "x", 1).has_value());
    auto timer = loop->add_timer(20ms, [&] {
        CHECK(calls == 0);
        CHECK(source->set_events(EPOLLIN).has_value());
    });
    REQUIRE(loop->run().has_value());
    CHECK(calls == 1);
    CHECK_FALSE(timer->set_events(EPOLLIN).has_value());
}

TEST_CASE("timers go off in the order of their deadlines, once, and not before") {
    auto loop = make_loop();
    std::vector<int> order;
    const Deadline late = Deadline::after(30ms);
    auto second = loop->add_timer(late, [&] {
        CHECK(late.passed());
        order.push_back(2);
        loop->stop();
    });
    auto first = loop->add_timer(10ms, [&] { order.push_back(1); });
    auto passed = loop->add_timer(Deadline::at_ns(0), [&] { order.push_back(0); });
    auto never = loop->add_timer(Deadline::never(), [&] { order.push_back(9); });
    REQUIRE(never.has_value());
    REQUIRE(loop->run().has_value());
    CHECK(order == std::vector{0, 1, 2});
    CHECK_FALSE(first->active());
    CHECK(never->active());
}

TEST_CASE("a signal reaches its callback with its sender") {
    auto loop = make_loop();
    uint32_t sender = 0;
    auto source = loop->add_signal(SIGUSR1, [&](const signalfd_siginfo& info) {
        sender = info.ssi_pid;
        loop->stop();
    });
    REQUIRE(source.has_value());
    REQUIRE(::kill(::getpid(), SIGUSR1) == 0);
    REQUIRE(loop->run().has_value());
    CHECK(sender == static_cast<uint32_t>(::getpid()));
}

TEST_CASE("posts from several threads all run on the loop's thread, each thread's in order") {
    auto loop = make_loop();
    constexpr int kThreads = 4;
    constexpr int kPosts = 500;
    std::vector<std::vector<int>> seen(kThreads);
    std::thread::id loop_thread;
    bool elsewhere = false;
    std::thread runner([&] {
        loop_thread = std::this_thread::get_id();
        CHECK(loop->run().has_value());
    });
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t)
        threads.emplace_back([&, t] {
            for (int i = 0; i < kPosts; ++i)
                loop->post([&, t, i] {
                    elsewhere = elsewhere || std::this_thread::get_id() != loop_thread;
                    seen[static_cast<size_t>(t)].push_back(i);
                });
        });
    for (auto& thread : threads)
        thread.join();
    loop->stop();
    runner.join();
    CHECK_FALSE(elsewhere);
    for (const auto& numbers : seen) {
        REQUIRE(numbers.size() == kPosts);
        for (int i = 0; i < kPosts; ++i)
            CHECK(numbers[static_cast<size_t>(i)] == i);
    }
}

TEST_CASE("a posted function may post another, which runs after it") {
    auto loop = make_loop();
    std::vector<int> order;
    loop->post([&] {
        loop->post([&] {
            order.push_back(2);
            loop->stop();
        });
        order.push_back(1);
    });
    REQUIRE(loop->run().has_value());
    CHECK(order == std::vector{1, 2});
}

TEST_CASE("an fd that cannot be watched is an error in words") {
    auto loop = make_loop();
    const auto source = loop->add_io(-1, EPOLLIN, [](uint32_t) {});
    REQUIRE_FALSE(source.has_value());
    CHECK(source.error().message.find("watch fd -1") == 0);
}
