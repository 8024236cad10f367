#include "supervisor/config_reader.hpp"

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "supervisor/units.hpp"

namespace liveupdate::supervisor {
namespace {

std::string in_quotes(std::string_view word) {
    return "'" + std::string(word) + "'";
}

std::string_view type_word(const toml::node& node) {
    switch (node.type()) {
    case toml::node_type::table:
        return "a table";
    case toml::node_type::array:
        return "an array";
    case toml::node_type::string:
        return "a string";
    case toml::node_type::integer:
        return "an integer";
    case toml::node_type::floating_point:
        return "a floating-point number";
    case toml::node_type::boolean:
        return "a boolean";
    default:
        return "a date or time";
    }
}

std::string suggestion(std::string_view word, const std::vector<std::string_view>& words) {
    const std::string_view near = nearest_word(word, words.data(), words.size());
    return near.empty() ? "" : "; did you mean " + in_quotes(near) + "?";
}

std::string joined(const std::vector<std::string_view>& words) {
    std::string all;
    for (size_t i = 0; i < words.size(); ++i)
        all += (i == 0 ? "" : i + 1 == words.size() ? " or " : ", ") + in_quotes(words[i]);
    return all;
}

} // namespace

void Complaints::add(const toml::source_position& at, std::string_view message) {
    complaints_.push_back({at, std::string(message)});
}

Result<void> Complaints::result() const {
    if (complaints_.empty()) return {};
    auto sorted = complaints_;
    std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.at < b.at; });
    std::ostringstream lines;
    for (const auto& [at, message] : sorted) {
        if (&message != &sorted.front().message) lines << '\n';
        // Position 0:0 is toml++'s "nowhere": the file as a whole.
        lines << path_ << ':' << std::max(at.line, 1u) << ':' << std::max(at.column, 1u) << ": " << message;
    }
    return Error(ErrorCode::kInvalid, lines.str());
}

std::string Section::where() const {
    return title_.empty() ? "" : " in " + title_;
}

const toml::node* Section::take(std::string_view key) {
    known_.push_back(key);
    return table_ ? table_->get(key) : nullptr;
}

void Section::complain(std::string_view key, std::string_view message) {
    toml::source_position at{};
    if (table_) at = table_->source().begin;
    if (const toml::node* node = table_ ? table_->get(key) : nullptr) at = node->source().begin;
    complaints_.add(at, message);
}

void Section::wrong_type(std::string_view key, const toml::node& node, std::string_view wanted) {
    complain(key,
        in_quotes(key) + where() + " is " + std::string(type_word(node)) + "; write " + std::string(wanted));
}

std::optional<std::string> Section::read_string(std::string_view key) {
    const toml::node* const node = take(key);
    if (!node) return std::nullopt;
    const auto* const text = node->as_string();
    if (!text)
        wrong_type(key, *node, "a string");
    else if (text->get().find('\0') != std::string::npos)
        complain(key, in_quotes(key) + where() + " holds a NUL character; leave it out");
    else
        return text->get();
    return std::nullopt;
}

void Section::string(std::string_view key, std::string& out) {
    if (auto text = read_string(key)) out = std::move(*text);
}

void Section::path(std::string_view key, const std::string& folder, std::string& out) {
    const auto text = read_string(key);
    if (!text) return;
    if (text->empty())
        return complain(key, in_quotes(key) + where() + " is empty; write a path, or leave the line out");
    out = (std::filesystem::path(folder) / *text).lexically_normal().string();
}

void Section::strings(std::string_view key, std::vector<std::string>& out) {
    const toml::node* const node = take(key);
    if (!node) return;
    const auto* const array = node->as_array();
    if (!array) return wrong_type(key, *node, "an array of strings");
    std::vector<std::string> all;
    for (const auto& element : *array) {
        const auto* const text = element.as_string();
        if (!text) return wrong_type(key, element, "strings in it only");
        if (text->get().find('\0') != std::string::npos)
            return complain(key, in_quotes(key) + where() + " holds a NUL character; leave it out");
        all.push_back(text->get());
    }
    out = std::move(all);
}

void Section::not_for(std::string_view driver, const std::vector<std::string_view>& keys) {
    for (const std::string_view key : keys)
        if (take(key))
            complain(
                key, in_quotes(key) + where() + " is not for driver " + in_quotes(driver) + "; leave it out");
}

void Section::boolean(std::string_view key, bool& out) {
    const toml::node* const node = take(key);
    if (!node) return;
    const auto* const value = node->as_boolean();
    if (!value) return wrong_type(key, *node, "true or false");
    out = value->get();
}

void Section::integer(std::string_view key, int64_t lowest, int64_t highest, unsigned& out) {
    const toml::node* const node = take(key);
    if (!node) return;
    const std::string range = "an integer from " + std::to_string(lowest) + " to " + std::to_string(highest);
    const auto* const value = node->as_integer();
    if (!value) return wrong_type(key, *node, range);
    if (value->get() < lowest || value->get() > highest)
        return complain(
            key, in_quotes(key) + where() + " is " + std::to_string(value->get()) + "; write " + range);
    out = static_cast<unsigned>(value->get());
}

void Section::duration(std::string_view key, std::chrono::microseconds lowest,
    std::chrono::microseconds highest, std::chrono::microseconds& out) {
    const toml::node* const node = take(key);
    if (!node) return;
    const auto* const text = node->as_string();
    if (!text) return wrong_type(key, *node, "a duration in quotes, for example \"500ms\", \"2s\" or \"1m\"");
    auto parsed = parse_duration(text->get());
    if (!parsed) return complain(key, in_quotes(key) + where() + ": " + parsed.error().message);
    if (*parsed < lowest || *parsed > highest)
        return complain(key, in_quotes(key) + where() + " is " + text->get() + "; write a duration from " +
                                 human_duration(lowest) + " to " + human_duration(highest));
    out = *parsed;
}

bool Section::size(std::string_view key, uint64_t& out) {
    const toml::node* const node = take(key);
    if (!node) return false;
    if (const auto* const number = node->as_integer(); number && number->get() >= 0) {
        out = static_cast<uint64_t>(number->get());
        return true;
    }
    if (node->is_integer()) {
        complain(key, in_quotes(key) + where() + " is negative; write a size");
        return false;
    }
    const auto* const text = node->as_string();
    if (!text) {
        wrong_type(key, *node, "a size, for example \"512M\" or a number of bytes");
        return false;
    }
    auto parsed = parse_size(text->get());
    if (!parsed) {
        complain(key, in_quotes(key) + where() + ": " + parsed.error().message);
        return false;
    }
    out = *parsed;
    return true;
}

void Section::choose(std::string_view key, const std::vector<std::string_view>& words, size_t& index) {
    const toml::node* const node = take(key);
    if (!node) return;
    const auto* const text = node->as_string();
    if (!text) return wrong_type(key, *node, joined(words));
    const auto found = std::find(words.begin(), words.end(), text->get());
    if (found == words.end())
        return complain(key, in_quotes(key) + where() + " is " + in_quotes(text->get()) + "; write " +
                                 joined(words) + suggestion(text->get(), words));
    index = static_cast<size_t>(found - words.begin());
}

std::vector<const toml::table*> Section::tables(std::string_view key) {
    const toml::node* const node = take(key);
    std::vector<const toml::table*> all;
    if (!node) return all;
    const auto* const array = node->as_array();
    if (!array || !array->is_array_of_tables()) {
        wrong_type(key, *node, "it as [[" + std::string(key) + "]], once for each");
        return all;
    }
    for (const auto& element : *array)
        all.push_back(element.as_table());
    return all;
}

const toml::table* Section::table(std::string_view key) {
    const toml::node* const node = take(key);
    if (!node) return nullptr;
    if (!node->is_table()) wrong_type(key, *node, "it as [" + std::string(key) + "] with its keys below");
    return node->as_table();
}

void Section::finish() {
    if (!table_) return;
    for (const auto& [key, node] : *table_) {
        if (std::find(known_.begin(), known_.end(), key.str()) != known_.end()) continue;
        const bool section = title_.empty() && (node.is_table() || node.is_array_of_tables());
        complaints_.add(key.source().begin, (section ? "unknown section " : "unknown key ") +
                                                in_quotes(key.str()) + where() +
                                                suggestion(key.str(), known_));
    }
}

} // namespace liveupdate::supervisor
