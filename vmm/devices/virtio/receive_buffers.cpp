#include "vmm/devices/virtio/receive_buffers.hpp"

#include <algorithm>
#include <cstring>
#include <string>

#include "vmm/devices/virtio/net_header.hpp"

namespace liveupdate::vmm::virtio {

bool ReceiveBuffers::enough(Merge merge, size_t longest) const {
    if (merge == Merge::kNever) return !buffers_.empty();
    return bytes_ >= longest || parts_.size() >= kEnoughParts;
}

Result<bool> ReceiveBuffers::gather(Queue& queue, Merge merge, size_t longest) {
    while (!enough(merge, longest) && buffers_.size() < queue.size()) {
        TRY_ASSIGN(const bool popped, queue.pop(chain_));
        if (popped)
            TRY(add());
        else if (!queue.expect_kick())
            return false;
    }
    queue.suppress_kicks();
    return true;
}

Result<void> ReceiveBuffers::add() {
    if (chain_.writable_bytes < sizeof(NetHeader))
        return Error(
            ErrorCode::kRefused, "a receive buffer of " + std::to_string(chain_.writable_bytes) + " bytes");
    const size_t parts = std::min(chain_.writable.size(), kMostPartsOfBuffer);
    uint32_t bytes = 0;
    for (const Segment& segment : std::span(chain_.writable).first(parts)) {
        parts_.push_back({segment.bytes.data(), segment.bytes.size()});
        bytes += static_cast<uint32_t>(segment.bytes.size());
    }
    buffers_.push_back({chain_.head, bytes, static_cast<uint32_t>(parts)});
    bytes_ += bytes;
    return {};
}

ssize_t ReceiveBuffers::receive(const Tap& tap) {
    // A read cuts off what does not fit, and does not say so: one byte more shows it.
    uint8_t beyond = 0;
    parts_.push_back({&beyond, 1});
    const ssize_t got = tap.receive(parts_);
    parts_.pop_back();
    return got;
}

void ReceiveBuffers::peek(std::span<uint8_t> bytes) const {
    for (size_t i = 0; i < parts_.size() && !bytes.empty(); ++i) {
        const size_t part = std::min(bytes.size(), parts_[i].iov_len);
        std::memcpy(bytes.data(), parts_[i].iov_base, part);
        bytes = bytes.subspan(part);
    }
}

void ReceiveBuffers::poke(std::span<const uint8_t> bytes) {
    for (size_t i = 0; i < parts_.size() && !bytes.empty(); ++i) {
        const size_t part = std::min(bytes.size(), parts_[i].iov_len);
        std::memcpy(parts_[i].iov_base, bytes.data(), part);
        bytes = bytes.subspan(part);
    }
}

uint16_t ReceiveBuffers::count(size_t bytes) const {
    uint16_t buffers = 0;
    for (size_t covered = 0; covered < bytes; ++buffers)
        covered += buffers_[buffers].bytes;
    return buffers;
}

void ReceiveBuffers::deliver(Queue& queue, size_t bytes) {
    const auto buffers = static_cast<std::ptrdiff_t>(count(bytes));
    size_t parts = 0;
    for (const Buffer& buffer : std::span(buffers_).first(static_cast<size_t>(buffers))) {
        const size_t written = std::min<size_t>(bytes, buffer.bytes);
        queue.stage(buffer.head, static_cast<uint32_t>(written));
        bytes -= written;
        bytes_ -= buffer.bytes;
        parts += buffer.parts;
    }
    queue.publish();
    buffers_.erase(buffers_.begin(), buffers_.begin() + buffers);
    parts_.erase(parts_.begin(), parts_.begin() + static_cast<std::ptrdiff_t>(parts));
}

void ReceiveBuffers::give_back(Queue& queue) {
    queue.unpop(static_cast<uint16_t>(buffers_.size()));
    forget();
}

void ReceiveBuffers::forget() {
    buffers_.clear();
    parts_.clear();
    bytes_ = 0;
}

} // namespace liveupdate::vmm::virtio
