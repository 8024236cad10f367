// A bounded queue of bytes that never allocates after it was made. Not thread-safe; its owner locks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace liveupdate::vmm {

class ByteQueue {
public:
    explicit ByteQueue(size_t capacity) : bytes_(capacity) {}

    size_t size() const { return size_; }
    size_t capacity() const { return bytes_.size(); }
    size_t space() const { return capacity() - size_; }
    bool empty() const { return size_ == 0; }

    // Precondition: space() > 0.
    void push(uint8_t byte) { bytes_[(first_ + size_++) % capacity()] = byte; }

    // Precondition: !empty().
    uint8_t pop() {
        const uint8_t byte = bytes_[first_];
        drop(1);
        return byte;
    }

    // Forgets the `count` oldest bytes, or all.
    void drop(size_t count) {
        count = std::min(count, size_);
        first_ = (first_ + count) % capacity();
        size_ -= count;
    }

    void clear() { first_ = size_ = 0; }

    // Copies the oldest bytes, as many as fit, and leaves them in the queue.
    size_t peek(std::span<uint8_t> into) const {
        const size_t count = std::min(into.size(), size_);
        const size_t before_wrap = std::min(count, capacity() - first_);
        std::copy_n(bytes_.begin() + static_cast<std::ptrdiff_t>(first_), before_wrap, into.begin());
        std::copy_n(
            bytes_.begin(), count - before_wrap, into.begin() + static_cast<std::ptrdiff_t>(before_wrap));
        return count;
    }

    std::string content() const {
        std::string text(size_, '\0');
        for (size_t i = 0; i < size_; ++i)
            text[i] = static_cast<char>(bytes_[(first_ + i) % capacity()]);
        return text;
    }

    // Replaces the content. Precondition: content.size() <= capacity().
    void assign(std::string_view content) {
        clear();
        for (const char c : content)
            push(static_cast<uint8_t>(c));
    }

private:
    std::vector<uint8_t> bytes_;
    size_t first_ = 0;
    size_t size_ = 0;
};

} // namespace liveupdate::vmm
