// A fuzzer's bytes as numbers; once they are used up, zeroes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

namespace liveupdate::fuzz {

class Input {
public:
    Input(const uint8_t* data, size_t size) : left_(data, size) {}

    bool done() const { return left_.empty(); }
    template <typename T>
    T take() {
        T value{};
        const auto bytes = take_bytes(sizeof value);
        std::memcpy(&value, bytes.data(), bytes.size());
        return value;
    }
    uint8_t byte() { return take<uint8_t>(); }
    // Fewer at the end.
    std::span<const uint8_t> take_bytes(size_t count) {
        const auto bytes = left_.first(std::min(count, left_.size()));
        left_ = left_.subspan(bytes.size());
        return bytes;
    }
    std::span<const uint8_t> rest() { return take_bytes(left_.size()); }

private:
    std::span<const uint8_t> left_;
};

} // namespace liveupdate::fuzz
