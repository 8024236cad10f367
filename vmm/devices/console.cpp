#include "vmm/devices/console.hpp"

#include <fcntl.h>
#include <sys/socket.h>

#include <array>
#include <cassert>
#include <cerrno>

#include "handoff/base/fd.hpp"
#include "vmm/devices/console_fds.hpp"

namespace liveupdate::vmm {
namespace {

constexpr size_t kChunk = 4096;
// A guest that writes without end must not keep the loop, nor hold(), from their turn.
constexpr int kChunksPerDispatch = 4;

bool would_block(int error) {
    return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

short events_of(std::span<const pollfd> polled, int fd) {
    for (const pollfd& entry : polled)
        if (entry.fd == fd) return entry.revents;
    return 0;
}

} // namespace

Result<std::unique_ptr<Console>> Console::none() {
    return make(Kind::kNone, {}, {}, {});
}

Result<std::unique_ptr<Console>> Console::file(UniqueFd file, ConsoleTiming timing) {
    TRY(check_console_file(file.get()).context("console file"));
    return make(Kind::kFile, std::move(file), {}, timing);
}

Result<std::unique_ptr<Console>> Console::pty(UniqueFd master, ConsoleTiming timing) {
    TRY(prepare_console_pty(master.get()).context("console pty"));
    return make(Kind::kPty, std::move(master), {}, timing);
}

Result<std::unique_ptr<Console>> Console::socket(UniqueFd listener, UniqueFd client, ConsoleTiming timing) {
    TRY(prepare_console_listener(listener.get()).context("console socket"));
    if (client) TRY(prepare_console_client(client.get()).context("client of the console socket"));
    return make(Kind::kSocket, std::move(client), std::move(listener), timing);
}

Result<std::unique_ptr<Console>> Console::make(
    Kind kind, UniqueFd stream, UniqueFd listener, ConsoleTiming timing) {
    TRY_ASSIGN(auto wake_fd, fd::eventfd(0).context("console"));
    return std::unique_ptr<Console>(
        new Console(kind, std::move(stream), std::move(listener), std::move(wake_fd), timing));
}

Console::Console(Kind kind, UniqueFd stream, UniqueFd listener, UniqueFd wake_fd, ConsoleTiming timing)
    : kind_(kind), timing_(timing), listener_(std::move(listener)), wake_fd_(std::move(wake_fd)),
      stream_(std::move(stream)), reader_(judge_reader()) {}

void Console::connect(ConsoleFrontend& frontend) {
    assert(frontend_ == nullptr);
    frontend_ = &frontend;
}

ConsoleReader Console::reader() const {
    return reader_.load(std::memory_order_acquire);
}

void Console::wake() {
    if (wake_pending_.exchange(true, std::memory_order_acq_rel)) return;
    const uint64_t one = 1;
    // Cannot fail: the counter is far from its limit, since there is one write for each take_wake().
    [[maybe_unused]] const ssize_t written = ::write(wake_fd_.get(), &one, sizeof one);
}

void Console::take_wake() {
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t taken = ::read(wake_fd_.get(), &count, sizeof count);
    // After the read and before the work: a wake() from here on writes again, an earlier one is served now.
    wake_pending_.exchange(false, std::memory_order_acq_rel);
}

bool Console::resting() const {
    return retry_at_ && !retry_at_->passed();
}

short Console::wanted_events() const {
    int events = 0;
    const bool readable = kind_ == Kind::kPty || (kind_ == Kind::kSocket && !input_ended_);
    if (readable && frontend_->receive_space() > 0) events |= POLLIN;
    if (output_blocked_ && !output_dead_) events |= POLLOUT;
    return static_cast<short>(events);
}

bool Console::wants_client() const {
    return kind_ == Kind::kSocket && flow_ == Flow::kRunning && (!stream_ || hung_up_);
}

void Console::collect(std::vector<pollfd>& fds) const {
    fds.push_back({wake_fd_.get(), POLLIN, 0});
    const std::lock_guard lock(io_mutex_);
    // A stream that failed would only wake us without end.
    if (flow_ == Flow::kHeld || resting()) return;
    if (wants_client()) fds.push_back({listener_.get(), POLLIN, 0});
    if (!stream_ || kind_ == Kind::kFile) return; // poll() has nothing to say about files
    const short events = wanted_events();
    // A hang-up is reported whether wanted or not, and again and again: it is listened for once.
    const bool expect_hang_up = kind_ == Kind::kSocket && !hung_up_;
    if (events != 0 || expect_hang_up) fds.push_back({stream_.get(), events, 0});
}

void Console::dispatch(std::span<const pollfd> polled) {
    const std::lock_guard lock(io_mutex_);
    take_wake();
    if (flow_ == Flow::kHeld || hold_wanted_.load(std::memory_order_relaxed)) return;
    if (!resting()) {
        retry_at_.reset();
        if (wants_client()) accept_client();
        if (stream_) after_poll(events_of(polled, stream_.get()));
    }
    tell_reader();
}

void Console::after_poll(short events) {
    if (kind_ == Kind::kSocket && (events & POLLHUP)) hung_up_ = output_dead_ = true;
    if (events & (POLLIN | POLLHUP | POLLERR)) read_input();
    if (!output_blocked_ || (events & (POLLOUT | POLLHUP | POLLERR))) write_output();
    if (input_ended_ && output_dead_) close_client();
}

void Console::accept_client() {
    const int client = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (client < 0) {
        if (!would_block(errno)) retry_at_ = Deadline::after(timing_.retry_after);
        return;
    }
    if (stream_) close_client();
    stream_.reset(client);
}

void Console::close_client() {
    stream_.reset();
    input_ended_ = output_dead_ = output_blocked_ = hung_up_ = false;
    away_at_.reset();
    wake(); // the listener is to be polled again, and may have somebody waiting
}

void Console::stream_failed() {
    if (kind_ == Kind::kSocket)
        output_dead_ = true; // what the client has sent before is still to be read
    else
        retry_at_ = Deadline::after(timing_.retry_after);
}

void Console::read_input() {
    std::array<uint8_t, 64> bytes;
    const size_t space = std::min(frontend_->receive_space(), bytes.size());
    if (space == 0 || input_ended_ || kind_ == Kind::kFile) return;
    const ssize_t got = ::read(stream_.get(), bytes.data(), space);
    if (got > 0) {
        [[maybe_unused]] const size_t taken =
            frontend_->receive(std::span(bytes).first(static_cast<size_t>(got)));
        assert(taken == static_cast<size_t>(got));
    } else if (got == 0) {
        input_ended_ = kind_ == Kind::kSocket;
    } else if (!would_block(errno)) {
        input_ended_ = kind_ == Kind::kSocket;
        stream_failed();
    }
}

void Console::write_output() {
    std::array<uint8_t, kChunk> bytes;
    for (int i = 0; i < kChunksPerDispatch && !output_dead_ && !resting(); ++i) {
        const size_t count = frontend_->peek_output(bytes);
        if (count == 0) {
            output_blocked_ = false;
            return away_at_.reset();
        }
        const ssize_t written = kind_ == Kind::kSocket
                                    ? ::send(stream_.get(), bytes.data(), count, MSG_NOSIGNAL)
                                    : ::write(stream_.get(), bytes.data(), count);
        if (written < 0 && would_block(errno)) return output_stalled();
        if (written < 0) return stream_failed();
        frontend_->consume_output(static_cast<size_t>(written));
        output_blocked_ = false;
        away_at_.reset();
    }
    if (!output_dead_ && !resting()) wake(); // there may be more
}

void Console::output_stalled() {
    output_blocked_ = true;
    if (!away_at_) away_at_ = Deadline::after(timing_.away_after);
}

ConsoleReader Console::judge_reader() const {
    switch (kind_) {
    case Kind::kNone:
        return ConsoleReader::kNever;
    case Kind::kFile:
        return resting() ? ConsoleReader::kAway : ConsoleReader::kAttached;
    case Kind::kPty: {
        const bool away = resting() || (away_at_ && away_at_->passed());
        return away ? ConsoleReader::kAway : ConsoleReader::kAttached;
    }
    case Kind::kSocket:
        return stream_ && !output_dead_ ? ConsoleReader::kAttached : ConsoleReader::kAway;
    }
    return ConsoleReader::kNever;
}

void Console::tell_reader() {
    reader_.store(judge_reader(), std::memory_order_release);
    frontend_->reader_changed();
}

Deadline Console::next_wake() const {
    const std::lock_guard lock(io_mutex_);
    if (flow_ == Flow::kHeld) return Deadline::never();
    Deadline at = Deadline::never();
    if (retry_at_) at = at.earlier(*retry_at_);
    // Once it has passed and been told there is nothing more to wait for.
    if (kind_ == Kind::kPty && away_at_ && reader() == ConsoleReader::kAttached) at = at.earlier(*away_at_);
    return at;
}

void Console::freeze_client() {
    const std::lock_guard lock(io_mutex_);
    if (flow_ == Flow::kRunning) flow_ = Flow::kFrozen;
}

Result<void> Console::hold(Deadline deadline) {
    hold_wanted_.store(true, std::memory_order_relaxed);
    const bool locked = io_mutex_.lock_until(deadline);
    hold_wanted_.store(false, std::memory_order_relaxed);
    if (!locked) {
        wake(); // for the turn that the loop has given up meanwhile
        return Error(ErrorCode::kTimeout, "hold the console: a write to it did not end in time");
    }
    const std::lock_guard lock(io_mutex_, std::adopt_lock);
    flow_ = Flow::kHeld;
    return {};
}

void Console::unhold() {
    assert(frontend_ != nullptr);
    {
        const std::lock_guard lock(io_mutex_);
        flow_ = Flow::kRunning;
    }
    wake();
}

int Console::client_fd() const {
    const std::lock_guard lock(io_mutex_);
    return kind_ == Kind::kSocket ? stream_.get() : -1;
}

} // namespace liveupdate::vmm
