// Sizes and durations as people write them.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "handoff/base/result.hpp"

namespace liveupdate::supervisor {

// "4096", "2048K", "512M", "4G", "1T": powers of 1024, an integer without sign. kInvalid in words otherwise.
Result<uint64_t> parse_size(std::string_view text);

// "500us", "500ms", "2s", "1.5s", "1m", "1h". kInvalid in words otherwise.
Result<std::chrono::microseconds> parse_duration(std::string_view text);

// The largest unit that divides it: "512M", "4G", "10000".
std::string exact_size(uint64_t bytes);
// For people: "512 MiB", "1.5 GiB".
std::string human_size(uint64_t bytes);
// For people, from "3 us" over "0.41 ms" and "2.0 s" to "2h 3min".
std::string human_duration(std::chrono::microseconds span);

// The word of `words` nearest to `word`, or "" when none is near enough to be a slip of the keyboard.
std::string_view nearest_word(std::string_view word, const std::string_view* words, size_t count);

} // namespace liveupdate::supervisor
