#include "vmm/devices/virtio/console.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <utility>

#include "handoff/base/fd.hpp"

namespace liveupdate::vmm::virtio {
namespace {

constexpr size_t kReceiveQueue = 0;
constexpr size_t kSendQueue = 1;
constexpr uint64_t kBell = 0; // token; queues' are others
// Of one queue in one round; the other one and the loop wait meanwhile.
constexpr int kBuffersPerRound = 64;

} // namespace

Result<void> ConsolePort::open_back_end() {
    TRY_ASSIGN(bell_, fd::eventfd(0));
    return worker().watch(bell_.get(), EPOLLIN, kBell);
}

void ConsolePort::call_worker() const {
    const uint64_t one = 1;
    if (bell_) static_cast<void>(::write(bell_.get(), &one, sizeof one));
}

// Size and ports are not offered, and what they would say reads 0.
void ConsolePort::read_config(uint64_t /*offset*/, std::span<uint8_t> into) const {
    std::fill(into.begin(), into.end(), uint8_t{0});
}

// A driver writes 32 bits, of which the lowest byte counts; it may not even have found its queues yet.
void ConsolePort::write_config(uint64_t offset, std::span<const uint8_t> from) {
    if (offset != kConsoleEmergencyOffset || from.empty()) return;
    if (console_.reader() == ConsoleReader::kNever) return;
    {
        const std::lock_guard lock(mutex_);
        dropped_output_ += 1 - put(from.first(1)); // a register cannot wait
    }
    console_.wake();
}

void ConsolePort::was_reset() {
    const std::lock_guard lock(mutex_);
    taken_of_next_ = 0;
    output_full_ = false;
}

void ConsolePort::ready(uint64_t token) {
    if (token == kBell) {
        uint64_t count = 0;
        static_cast<void>(::read(bell_.get(), &count, sizeof count));
        receive_due_ = send_due_ = true;
        return;
    }
    const size_t queue = token - kFirstQueueToken;
    transport().clear_kick(queue);
    (queue == kReceiveQueue ? receive_due_ : send_due_) = true;
}

void ConsolePort::finish_round() {
    // Each queue is asked for anew: serving one may break the device.
    if (Queue* const queue = transport().queue(kSendQueue); std::exchange(send_due_, false) && queue)
        serve_send(*queue);
    if (Queue* const queue = transport().queue(kReceiveQueue); std::exchange(receive_due_, false) && queue)
        serve_receive(*queue);
}

Deadline ConsolePort::wake_at() const {
    return receive_due_ || send_due_ ? Deadline::after(std::chrono::nanoseconds(0)) : Deadline::never();
}

void ConsolePort::serve_send(Queue& queue) {
    for (int buffers = 0;; ++buffers) {
        if (buffers == kBuffersPerRound || worker().must_yield()) {
            send_due_ = true;
            break;
        }
        const auto popped = queue.pop(chain_);
        if (!popped) return transport().fail();
        if (!*popped) {
            if (queue.expect_kick()) continue;
            break;
        }
        if (take(chain_) == Taken::kPart) { // consume_output() and reader_changed() call again
            queue.unpop(1);
            break;
        }
        queue.push(chain_.head, 0);
    }
    transport().signal_used(queue);
    if (has_output()) console_.wake();
}

// What is left of the buffer goes to `output`, as far as there is room, or nobody to wait for.
ConsolePort::Taken ConsolePort::take(const Chain& chain) {
    const ConsoleReader reader = console_.reader();
    if (reader == ConsoleReader::kNever) return Taken::kAll;
    const bool wait = reader == ConsoleReader::kAttached;
    const std::lock_guard lock(mutex_);
    uint64_t passed_over = taken_of_next_;
    for (const Segment& segment : chain.readable) {
        const uint64_t skip = std::min<uint64_t>(passed_over, segment.bytes.size());
        passed_over -= skip;
        const auto bytes = segment.bytes.subspan(skip);
        const size_t kept = put(bytes);
        if (kept < bytes.size() && wait) {
            taken_of_next_ += kept;
            output_full_ = true;
            return Taken::kPart;
        }
        dropped_output_ += bytes.size() - kept;
        taken_of_next_ += bytes.size();
    }
    taken_of_next_ = 0;
    output_full_ = false;
    return Taken::kAll;
}

// As many bytes as have room; with mutex_ held.
size_t ConsolePort::put(std::span<const uint8_t> bytes) {
    const size_t count = std::min(bytes.size(), output_.space());
    for (const uint8_t byte : bytes.first(count))
        output_.push(byte);
    return count;
}

void ConsolePort::serve_receive(Queue& queue) {
    bool moved = false;
    for (int buffers = 0;; ++buffers) {
        if (!has_input()) break; // receive() calls again
        if (buffers == kBuffersPerRound || worker().must_yield()) {
            receive_due_ = true;
            break;
        }
        const auto popped = queue.pop(chain_);
        if (!popped) return transport().fail();
        if (!*popped) {
            if (queue.expect_kick()) continue;
            break;
        }
        fill(queue);
        moved = true;
    }
    transport().signal_used(queue);
    if (moved) console_.wake(); // there is room for input again
}

void ConsolePort::fill(Queue& queue) {
    std::array<uint8_t, kInputCapacity> bytes;
    const std::lock_guard lock(mutex_);
    const size_t waiting = input_.peek(bytes);
    const size_t written = write_front(chain_.writable, std::span(bytes).first(waiting));
    input_.drop(written);
    queue.push(chain_.head, static_cast<uint32_t>(written));
}

bool ConsolePort::has_input() const {
    const std::lock_guard lock(mutex_);
    return !input_.empty();
}

bool ConsolePort::has_output() const {
    const std::lock_guard lock(mutex_);
    return !output_.empty();
}

size_t ConsolePort::peek_output(std::span<uint8_t> into) const {
    const std::lock_guard lock(mutex_);
    return output_.peek(into);
}

void ConsolePort::consume_output(size_t count) {
    const std::lock_guard lock(mutex_);
    output_.drop(count);
    if (std::exchange(output_full_, false)) call_worker();
}

size_t ConsolePort::receive_space() const {
    const std::lock_guard lock(mutex_);
    return input_.space();
}

size_t ConsolePort::receive(std::span<const uint8_t> bytes) {
    const std::lock_guard lock(mutex_);
    const size_t count = std::min(bytes.size(), input_.space());
    for (const uint8_t byte : bytes.first(count))
        input_.push(byte);
    call_worker();
    return count;
}

void ConsolePort::reader_changed() {
    const std::lock_guard lock(mutex_);
    if (output_full_ && console_.reader() != ConsoleReader::kAttached) call_worker();
}

uint64_t ConsolePort::dropped_output() const {
    const std::lock_guard lock(mutex_);
    return dropped_output_;
}

} // namespace liveupdate::vmm::virtio
