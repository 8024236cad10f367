#include "supervisor/units.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <vector>

namespace liveupdate::supervisor {
namespace {

struct SizeUnit {
    char letter;
    unsigned shift;
};
constexpr std::array kSizeUnits = {
    SizeUnit{'T', 40}, SizeUnit{'G', 30}, SizeUnit{'M', 20}, SizeUnit{'K', 10}};

struct TimeUnit {
    std::string_view name;
    double microseconds;
};
constexpr std::array kTimeUnits = {TimeUnit{"us", 1}, TimeUnit{"ms", 1e3}, TimeUnit{"s", 1e6},
    TimeUnit{"min", 60e6}, TimeUnit{"m", 60e6}, TimeUnit{"h", 3600e6}};
// A century: far above every limit, far below an overflow.
constexpr double kLongestUs = 3.2e15;

std::string quoted(std::string_view text) {
    return "'" + std::string(text) + "'";
}

size_t edit_distance(std::string_view a, std::string_view b) {
    std::vector<size_t> row(b.size() + 1);
    for (size_t j = 0; j <= b.size(); ++j)
        row[j] = j;
    for (size_t i = 1; i <= a.size(); ++i) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b.size(); ++j) {
            const size_t changed = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
            diagonal = row[j];
            row[j] = std::min({row[j] + 1, row[j - 1] + 1, changed});
        }
    }
    return row[b.size()];
}

template <typename... Arguments>
std::string printed(const char* format, Arguments... arguments) {
    char buffer[64];
    std::snprintf(buffer, sizeof(buffer), format, arguments...);
    return buffer;
}

} // namespace

Result<uint64_t> parse_size(std::string_view text) {
    const Error bad(
        ErrorCode::kInvalid, quoted(text) + " is not a size; write for example 512M, 4G or 2048K");
    uint64_t number = 0;
    const char* const end = text.data() + text.size();
    const auto [rest, problem] = std::from_chars(text.data(), end, number);
    if (problem != std::errc{}) return bad;
    if (rest == end) return number;
    if (rest + 1 != end) return bad;
    const auto unit = std::find_if(
        kSizeUnits.begin(), kSizeUnits.end(), [letter = *rest](SizeUnit u) { return u.letter == letter; });
    if (unit == kSizeUnits.end()) return bad;
    if (number > UINT64_MAX >> unit->shift)
        return Error(ErrorCode::kInvalid, quoted(text) + " is more than 64 bits can count");
    return number << unit->shift;
}

Result<std::chrono::microseconds> parse_duration(std::string_view text) {
    const Error bad(
        ErrorCode::kInvalid, quoted(text) + " is not a duration; write for example 500ms, 2s or 1m");
    double number = 0;
    const char* const end = text.data() + text.size();
    const auto [rest, problem] = std::from_chars(text.data(), end, number, std::chars_format::fixed);
    // from_chars takes "nan" and "inf" too; a duration starts with a digit.
    if (problem != std::errc{} || text.front() < '0' || text.front() > '9') return bad;
    const std::string_view name(rest, static_cast<size_t>(end - rest));
    const auto unit = std::find_if(
        kTimeUnits.begin(), kTimeUnits.end(), [name](const TimeUnit& u) { return u.name == name; });
    if (unit == kTimeUnits.end()) return bad;
    const double us = number * unit->microseconds;
    if (us > kLongestUs) return Error(ErrorCode::kInvalid, quoted(text) + " is longer than a century");
    return std::chrono::microseconds(std::llround(us));
}

std::string exact_size(uint64_t bytes) {
    for (const SizeUnit unit : kSizeUnits)
        if (bytes != 0 && (bytes & ((uint64_t{1} << unit.shift) - 1)) == 0)
            return std::to_string(bytes >> unit.shift) + unit.letter;
    return std::to_string(bytes);
}

std::string human_size(uint64_t bytes) {
    for (const SizeUnit unit : kSizeUnits) {
        if (bytes < uint64_t{1} << unit.shift) continue;
        const double value = static_cast<double>(bytes) / static_cast<double>(uint64_t{1} << unit.shift);
        return printed(value == std::floor(value) ? "%.0f %ciB" : "%.1f %ciB", value, unit.letter);
    }
    return std::to_string(bytes) + " B";
}

std::string human_duration(std::chrono::microseconds span) {
    const int64_t us = span.count();
    if (us < 100) return printed("%" PRId64 " us", us);
    if (us < 10'000) return printed("%.2f ms", static_cast<double>(us) / 1e3);
    if (us < 1'000'000) return printed("%.0f ms", static_cast<double>(us) / 1e3);
    const int64_t seconds = us / 1'000'000;
    if (seconds < 60) return printed("%.1f s", static_cast<double>(us) / 1e6);
    if (seconds < 3600) return printed("%" PRId64 "min %" PRId64 "s", seconds / 60, seconds % 60);
    if (seconds < 86400) return printed("%" PRId64 "h %" PRId64 "min", seconds / 3600, seconds % 3600 / 60);
    return printed("%" PRId64 "d %" PRId64 "h", seconds / 86400, seconds % 86400 / 3600);
}

std::string_view nearest_word(std::string_view word, const std::string_view* words, size_t count) {
    std::string_view best;
    size_t best_distance = word.size() <= 3 ? 2 : 3; // nearer than this
    for (size_t i = 0; i < count; ++i) {
        // "vcpu" for "vcpus", "limit" for "blackout_limit": the beginning or the end of a longer word.
        const bool part = word.size() >= 4 && (words[i].starts_with(word) || words[i].ends_with(word));
        const size_t distance = part ? 1 : edit_distance(word, words[i]);
        if (distance >= best_distance || distance >= words[i].size()) continue;
        best = words[i];
        best_distance = distance;
    }
    return best;
}

} // namespace liveupdate::supervisor
