#include "systemd/event_loop.hpp"

#include <pthread.h>
#include <sys/eventfd.h>
#include <systemd/sd-event.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "handoff/base/fd.hpp"

namespace liveupdate::systemd {
namespace {

// Timers may be this late, so that sd-event can let one wake-up serve several.
constexpr uint64_t kTimerAccuracyUs = 1000;

Error from_sd(int negative_errno, std::string_view what) {
    errno = -negative_errno;
    return Error::from_errno(what);
}

} // namespace

// sd-event holds a plain pointer to it; the trampolines hold a reference while the callback runs, so that a
// callback may destroy its own Source.
struct Source::Entry : std::enable_shared_from_this<Source::Entry> {
    sd_event_source* source = nullptr;
    std::function<void(uint32_t)> on_io;
    std::function<void(const signalfd_siginfo&)> on_signal;
    std::function<void()> on_timer;

    ~Entry() { disarm(); }
    void disarm() { source = sd_event_source_disable_unref(source); }

    static int io(sd_event_source*, int, uint32_t events, void* entry) {
        const auto self = static_cast<Entry*>(entry)->shared_from_this();
        self->on_io(events);
        return 0;
    }
    static int signal(sd_event_source*, const signalfd_siginfo* info, void* entry) {
        const auto self = static_cast<Entry*>(entry)->shared_from_this();
        self->on_signal(*info);
        return 0;
    }
    static int timer(sd_event_source*, uint64_t, void* entry) {
        const auto self = static_cast<Entry*>(entry)->shared_from_this();
        self->disarm();
        self->on_timer();
        return 0;
    }
};

Source::Source() = default;
Source::Source(std::shared_ptr<Entry> entry) : entry_(std::move(entry)) {}
Source::Source(Source&& other) noexcept = default;

Source& Source::operator=(Source&& other) noexcept {
    if (this != &other) {
        reset();
        entry_ = std::move(other.entry_);
    }
    return *this;
}

Source::~Source() {
    reset();
}

void Source::reset() {
    if (entry_) entry_->disarm();
    entry_.reset();
}

bool Source::active() const {
    return entry_ && entry_->source;
}

Result<void> Source::set_events(uint32_t events) {
    if (!active() || !entry_->on_io)
        return Error(ErrorCode::kInternal, "set_events on a source that watches no fd");
    if (const int r = sd_event_source_set_io_events(entry_->source, events); r < 0)
        return from_sd(r, "change the events of an fd in the event loop");
    return {};
}

struct EventLoop::Inner {
    sd_event* event = nullptr;
    UniqueFd wake;
    Source wake_source;
    std::atomic<std::thread::id> running_on;
    std::mutex mutex;
    std::vector<std::function<void()>> posted;

    ~Inner() {
        wake_source.reset();
        sd_event_unref(event);
    }

    void run_posted() {
        eventfd_t count = 0;
        static_cast<void>(!::read(wake.get(), &count, sizeof(count)));
        std::vector<std::function<void()>> batch;
        {
            const std::lock_guard lock(mutex);
            batch.swap(posted);
        }
        for (auto& function : batch)
            function();
    }
};

EventLoop::EventLoop(std::unique_ptr<Inner> inner) : inner_(std::move(inner)) {}
EventLoop::~EventLoop() = default;

Result<std::unique_ptr<EventLoop>> EventLoop::create() {
    auto inner = std::make_unique<Inner>();
    if (const int r = sd_event_new(&inner->event); r < 0) return from_sd(r, "create an event loop");
    TRY_ASSIGN(inner->wake, fd::eventfd(0));
    std::unique_ptr<EventLoop> loop(new EventLoop(std::move(inner)));
    Inner* const raw = loop->inner_.get();
    TRY_ASSIGN(
        raw->wake_source, loop->add_io(raw->wake.get(), EPOLLIN, [raw](uint32_t) { raw->run_posted(); }));
    return loop;
}

Result<Source> EventLoop::add_io(int fd, uint32_t events, std::function<void(uint32_t)> callback) {
    auto entry = std::make_shared<Source::Entry>();
    entry->on_io = std::move(callback);
    const int r = sd_event_add_io(inner_->event, &entry->source, fd, events, &Source::Entry::io, entry.get());
    if (r < 0) return from_sd(r, "watch fd " + std::to_string(fd));
    return Source(std::move(entry));
}

Result<Source> EventLoop::add_signal(int signal, std::function<void(const signalfd_siginfo&)> callback) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    if (const int r = pthread_sigmask(SIG_BLOCK, &set, nullptr); r != 0)
        return from_sd(-r, "block signal " + std::to_string(signal));
    auto entry = std::make_shared<Source::Entry>();
    entry->on_signal = std::move(callback);
    const int r =
        sd_event_add_signal(inner_->event, &entry->source, signal, &Source::Entry::signal, entry.get());
    if (r < 0) return from_sd(r, "watch signal " + std::to_string(signal));
    return Source(std::move(entry));
}

Result<Source> EventLoop::add_timer(Deadline at, std::function<void()> callback) {
    auto entry = std::make_shared<Source::Entry>();
    entry->on_timer = std::move(callback);
    const uint64_t at_us = (at.ns() + 999) / 1000;
    const int r = sd_event_add_time(inner_->event, &entry->source, CLOCK_MONOTONIC, at_us, kTimerAccuracyUs,
        &Source::Entry::timer, entry.get());
    if (r < 0) return from_sd(r, "set a timer");
    return Source(std::move(entry));
}

Result<Source> EventLoop::add_timer(std::chrono::nanoseconds after, std::function<void()> callback) {
    return add_timer(Deadline::after(after), std::move(callback));
}

void EventLoop::post(std::function<void()> function) {
    {
        const std::lock_guard lock(inner_->mutex);
        inner_->posted.push_back(std::move(function));
    }
    // Fails only when the counter is full, and then the loop has been woken already.
    const eventfd_t one = 1;
    static_cast<void>(!::write(inner_->wake.get(), &one, sizeof(one)));
}

Result<int> EventLoop::run() {
    inner_->running_on = std::this_thread::get_id();
    const int r = sd_event_loop(inner_->event);
    inner_->running_on = std::thread::id();
    if (r < 0) return from_sd(r, "run the event loop");
    return r;
}

void EventLoop::stop(int code) {
    if (inner_->running_on.load() == std::this_thread::get_id())
        sd_event_exit(inner_->event, code);
    else
        post([this, code] { sd_event_exit(inner_->event, code); });
}

sd_event* EventLoop::native() const {
    return inner_->event;
}

} // namespace liveupdate::systemd
