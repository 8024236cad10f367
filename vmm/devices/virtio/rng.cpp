#include "vmm/devices/virtio/rng.hpp"

#include <sys/random.h>

#include <algorithm>
#include <utility>

#include "vmm/devices/state_message.hpp"
#include "vmm/devices/virtio/rng.pb.h"

namespace liveupdate::vmm::virtio {
namespace {

// A driver may offer gigabytes, and is content with less (5.4.6.1).
constexpr size_t kMostBytes = 4096;
constexpr int kBuffersPerRound = 16;

// Fills the front of `segments`; how many bytes.
uint32_t fill(std::span<const Segment> segments) {
    size_t filled = 0;
    for (const Segment& segment : segments) {
        const size_t part = std::min(segment.bytes.size(), kMostBytes - filled);
        const ssize_t got = ::getrandom(segment.bytes.data(), part, 0);
        if (got <= 0) break;
        filled += static_cast<size_t>(got);
        if (static_cast<size_t>(got) < part || filled == kMostBytes) break;
    }
    return static_cast<uint32_t>(filled);
}

} // namespace

Result<std::string> Rng::save() const {
    state::VirtioRng message;
    transport().save(*message.mutable_transport());
    return serialise_state(message);
}

Result<void> Rng::load(std::string_view bytes, uint32_t version) {
    state::VirtioRng message;
    TRY(parse_state(message, bytes, version, {kSection, kStateVersion, kOldestLoadable}));
    auto queues = transport().check(message.transport());
    if (!queues) return std::move(queues).error().context(std::string("state of ") + kSection);
    transport().apply(message.transport(), std::move(*queues));
    return {};
}

void Rng::read_config(uint64_t /*offset*/, std::span<uint8_t> into) const {
    std::fill(into.begin(), into.end(), uint8_t{0});
}

void Rng::ready(uint64_t token) {
    transport().clear_kick(token - kFirstQueueToken);
    due_ = true;
}

void Rng::finish_round() {
    Queue* const queue = transport().queue(0);
    if (std::exchange(due_, false) && queue) serve(*queue);
}

Deadline Rng::wake_at() const {
    return due_ ? Deadline::after(std::chrono::nanoseconds(0)) : Deadline::never();
}

void Rng::serve(Queue& queue) {
    for (int buffers = 0;; ++buffers) {
        if (buffers == kBuffersPerRound || worker().must_yield()) {
            due_ = true;
            break;
        }
        const auto popped = queue.pop(chain_);
        if (!popped) return transport().fail();
        if (!*popped) {
            if (queue.expect_kick()) continue;
            break;
        }
        queue.push(chain_.head, fill(chain_.writable));
    }
    transport().signal_used(queue);
}

} // namespace liveupdate::vmm::virtio
