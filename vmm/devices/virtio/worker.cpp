#include "vmm/devices/virtio/worker.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <span>

#include "handoff/base/fd.hpp"
#include "handoff/base/futex.hpp"

namespace liveupdate::vmm::virtio {
namespace {

constexpr auto kUnwatchedLook = std::chrono::milliseconds(10);

} // namespace

Result<void> Worker::open() {
    epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
    if (!epoll_) return Error::from_errno("epoll_create1 for a device");
    TRY_ASSIGN(control_, fd::eventfd(0));
    return watch(control_.get(), EPOLLIN, kControl);
}

Result<void> Worker::watch(int fd, uint32_t epoll_events, uint64_t token) {
    epoll_event event{};
    event.events = epoll_events;
    event.data.u64 = token;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) < 0)
        return Error::from_errno("watch a device's file descriptor");
    return {};
}

void Worker::unwatch(int fd) {
    static_cast<void>(::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr));
}

Result<void> Worker::watch_while_free(int fd, uint32_t epoll_events, uint64_t token) {
    TRY(watch(fd, epoll_events, token)); // what cannot be watched is told of now
    unwatch(fd);
    shared_.push_back({fd, epoll_events, token});
    return {};
}

// What the kernel has no memory for now is tried again with each round, and looked at now and then until it
// is watched.
void Worker::watch_shared() {
    shared_watched_ = std::all_of(shared_.begin(), shared_.end(),
        [this](const Watch& one) { return watch(one.fd, one.epoll_events, one.token).has_value(); });
    if (!shared_watched_) unwatch_shared();
}

void Worker::unwatch_shared() {
    for (const Watch& one : shared_)
        unwatch(one.fd);
    shared_watched_ = false;
}

void Worker::start(const std::string& name) {
    // No signal handler runs here: kicks are for vCPUs.
    sigset_t all{};
    sigset_t before{};
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this] { main(); });
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    ::pthread_setname_np(thread_.native_handle(), name.substr(0, 15).c_str());
}

void Worker::stop() {
    if (!thread_.joinable()) return;
    state_.fetch_or(kQuit, std::memory_order_acq_rel);
    futex_wake_all(&state_, FutexScope::kPrivate);
    wake();
    thread_.join();
}

void Worker::wake() {
    const uint64_t one = 1;
    if (control_) static_cast<void>(::write(control_.get(), &one, sizeof one));
}

void Worker::hold(Reason reason) {
    state_.fetch_or(reason, std::memory_order_acq_rel);
}

bool Worker::await_held(Deadline deadline) const {
    for (;;) {
        const uint32_t seen = state_.load(std::memory_order_acquire);
        if ((seen & kWorking) == 0) return true;
        if (deadline.passed()) return false;
        futex_wait(&state_, seen, deadline, FutexScope::kPrivate);
    }
}

void Worker::unhold(Reason reason) {
    look_.store(true, std::memory_order_release);
    state_.fetch_and(~uint32_t{reason}, std::memory_order_acq_rel);
    futex_wake_all(&state_, FutexScope::kPrivate);
    wake();
}

bool Worker::begin_round() {
    uint32_t seen = state_.load(std::memory_order_acquire);
    for (;;) {
        if ((seen & kQuit) != 0) return false;
        if (seen != 0) {
            if (shared_watched_ && (seen & kUpdate) != 0) unwatch_shared();
            // Parked in a system call that signals interrupt: the kernel completes requests of this thread's
            // io_uring in it.
            futex_wait(&state_, seen, Deadline::never(), FutexScope::kPrivate);
            seen = state_.load(std::memory_order_acquire);
        } else if (state_.compare_exchange_weak(seen, kWorking, std::memory_order_acq_rel)) {
            if (!shared_watched_) watch_shared();
            return true;
        }
    }
}

void Worker::end_round() {
    if (state_.fetch_and(~kWorking, std::memory_order_acq_rel) != kWorking)
        futex_wake_all(&state_, FutexScope::kPrivate);
}

void Worker::main() {
    std::array<epoll_event, 16> events{};
    int ready = 0;
    while (begin_round()) {
        const std::span these(events.data(), static_cast<size_t>(std::max(ready, 0)));
        // The control eventfd first: whoever writes to it has changed `look_` or the state word before, and
        // what is read here is not told again.
        uint64_t count = 0;
        for (const epoll_event& event : these)
            if (event.data.u64 == kControl) static_cast<void>(::read(control_.get(), &count, sizeof count));
        if (look_.exchange(false, std::memory_order_acq_rel)) client_.look();
        for (const epoll_event& event : these)
            if (event.data.u64 != kControl) client_.ready(event.data.u64);
        client_.finish_round();
        Deadline wake_at = client_.wake_at();
        if (!shared_watched_) wake_at = wake_at.earlier(Deadline::after(kUnwatchedLook));
        end_round();
        if (is_ending()) return;
        const auto before = Deadline::Clock::now();
        ready = ::epoll_wait(epoll_.get(), events.data(), events.size(), wake_at.poll_ms());
        slept_ = Deadline::Clock::now() - before;
        if (ready == 0 && !shared_watched_) look_.store(true, std::memory_order_release);
    }
}

} // namespace liveupdate::vmm::virtio
