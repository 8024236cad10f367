// An event loop on sd-event: callbacks on one thread, sources removed by their handle's destructor.
//
// Everything but post() and stop() belongs to the thread that calls run() (or to the one that sets the loop
// up before run()). Callbacks must not throw. A callback may destroy its own Source, or any other.
#pragma once

#include <sys/epoll.h>
#include <sys/signalfd.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"

struct sd_event;

namespace liveupdate::systemd {

class EventLoop;

// Owns one registration. Destroyed or reset, its callback is not called again; this holds also for an event
// that is already pending. It must not outlive its EventLoop.
class Source {
public:
    Source();
    Source(Source&& other) noexcept;
    Source& operator=(Source&& other) noexcept;
    Source(const Source&) = delete;
    Source& operator=(const Source&) = delete;
    ~Source();

    void reset();
    // True while the callback may still be called: false for an empty handle and for a timer that went off.
    bool active() const;
    // For a source of add_io only: the epoll events waited for from now on; 0 leaves EPOLLHUP and EPOLLERR.
    Result<void> set_events(uint32_t events);

private:
    friend class EventLoop;
    struct Entry;
    explicit Source(std::shared_ptr<Entry> entry);
    std::shared_ptr<Entry> entry_;
};

class EventLoop {
public:
    static Result<std::unique_ptr<EventLoop>> create();
    EventLoop(const EventLoop&) = delete;
    EventLoop& operator=(const EventLoop&) = delete;
    ~EventLoop();

    // `fd` is borrowed and must stay open as long as the Source lives. Level-triggered, epoll's event bits.
    Result<Source> add_io(int fd, uint32_t events, std::function<void(uint32_t events)> callback);

    // Blocks the signal in the calling thread first: call it before any other thread is started, since a
    // signal that some thread does not block is not seen by the loop.
    Result<Source> add_signal(int signal, std::function<void(const signalfd_siginfo&)> callback);

    // One shot, at most a millisecond late while the loop is idle.
    Result<Source> add_timer(Deadline at, std::function<void()> callback);
    Result<Source> add_timer(std::chrono::nanoseconds after, std::function<void()> callback);

    // From any thread: runs `function` on the loop's thread, in the order of the posts, never inside this
    // call. What was posted and not run when the loop stops is destroyed with the loop.
    void post(std::function<void()> function);

    // Runs until stop(); once only. The value is what stop() was given.
    Result<int> run();
    // From any thread, also before run(). From a callback: no other source is called after it.
    void stop(int code = 0);

    // For sd_event_set_watchdog and the like; borrowed.
    sd_event* native() const;

private:
    struct Inner;
    explicit EventLoop(std::unique_ptr<Inner> inner);
    std::unique_ptr<Inner> inner_;
};

} // namespace liveupdate::systemd
