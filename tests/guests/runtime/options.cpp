#include "tests/guests/runtime/options.hpp"

#include <cstddef>

namespace tests::guests {

namespace {

constexpr std::size_t kMaxLength = 2047;
char command_line[kMaxLength + 1];

bool ends_word(char c) {
    return c == '\0' || c == ' ' || c == '\t' || c == '\n';
}

/// Start of the value of the last `name=`, or nullptr.
const char* find_value(const char* name) {
    const char* found = nullptr;
    for (const char* at = command_line; *at != '\0';) {
        const char* letter = name;
        while (*letter != '\0' && *at == *letter)
            ++at, ++letter;
        if (*letter == '\0' && *at == '=') found = at + 1;
        while (!ends_word(*at))
            ++at;
        while (*at != '\0' && ends_word(*at))
            ++at;
    }
    return found;
}

/// Value of a digit, or 255.
unsigned digit(char c) {
    if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
    const char lower = static_cast<char>(c | 0x20);
    if (lower >= 'a' && lower <= 'f') return static_cast<unsigned>(lower - 'a' + 10);
    return 255;
}

} // namespace

void keep_command_line(const char* text) {
    std::size_t length = 0;
    while (length < kMaxLength && text[length] != '\0') {
        command_line[length] = text[length];
        ++length;
    }
    command_line[length] = '\0';
}

std::uint64_t option_number(const char* name, std::uint64_t fallback) {
    const char* at = find_value(name);
    if (at == nullptr) return fallback;
    unsigned base = 10;
    if (at[0] == '0' && (at[1] | 0x20) == 'x') {
        base = 16;
        at += 2;
    }
    if (digit(*at) >= base) return fallback;
    std::uint64_t value = 0;
    while (digit(*at) < base)
        value = value * base + digit(*at++);
    return value;
}

bool option_is(const char* name, const char* word) {
    const char* at = find_value(name);
    if (at == nullptr) return false;
    while (*word != '\0' && *at == *word)
        ++at, ++word;
    return *word == '\0' && ends_word(*at);
}

} // namespace tests::guests
