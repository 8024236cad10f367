// A peer's text as part of our own sentences.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

namespace liveupdate {

// At most `limit` bytes of it, all of them printable ASCII: what is not becomes '?', what is cut ends in
// "...".
inline std::string printable(std::string_view text, size_t limit) {
    std::string words(text.substr(0, limit));
    std::replace_if(
        words.begin(), words.end(), [](char c) { return c < 0x20 || c >= 0x7f; }, '?');
    if (text.size() > limit && limit >= 3) words.replace(limit - 3, 3, "...");
    return words;
}

} // namespace liveupdate
