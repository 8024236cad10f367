// Strict reading of TOML tables: every key is asked for by name, what nobody asked for is an error, and all
// errors of a file are collected. Used by config.cpp only.
#pragma once

// Parsing then returns its errors.
#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "handoff/base/result.hpp"

namespace liveupdate::supervisor {

// The errors of one file.
class Complaints {
public:
    explicit Complaints(std::string path) : path_(std::move(path)) {}

    void add(const toml::source_position& at, std::string_view message);
    // All of them, one per line, in the order of the file.
    Result<void> result() const;

private:
    struct Complaint {
        toml::source_position at;
        std::string message;
    };
    std::string path_;
    std::vector<Complaint> complaints_;
};

// One table, e.g. [machine]. Each getter leaves `out` as it is when the key is missing or wrong (and
// complains of what is wrong), and makes the key known.
class Section {
public:
    // `table` may be null: the section is not in the file, and every key is missing.
    Section(Complaints& complaints, std::string title, const toml::table* table)
        : complaints_(complaints), title_(std::move(title)), table_(table) {}

    bool has(std::string_view key) const { return table_ && table_->contains(key); }

    void string(std::string_view key, std::string& out);
    // A path; a relative one starts from `folder`.
    void path(std::string_view key, const std::string& folder, std::string& out);
    void strings(std::string_view key, std::vector<std::string>& out);
    void boolean(std::string_view key, bool& out);
    void integer(std::string_view key, int64_t lowest, int64_t highest, unsigned& out);
    void duration(std::string_view key, std::chrono::microseconds lowest, std::chrono::microseconds highest,
        std::chrono::microseconds& out);
    // "512M", or bytes as an integer; true when there was a good one.
    bool size(std::string_view key, uint64_t& out);
    // One of `words`; their place in `words` is the value.
    template <typename Enum>
    void choice(std::string_view key, const std::vector<std::string_view>& words, Enum& out) {
        size_t index = static_cast<size_t>(out);
        choose(key, words, index);
        out = static_cast<Enum>(index);
    }

    // The tables of [[key]], in order; empty (and complained of, if it is something else) when there are
    // none.
    std::vector<const toml::table*> tables(std::string_view key);
    // The table [key], or null.
    const toml::table* table(std::string_view key);

    // Complains of each of `keys` that is there: they are not for this kind of VMM.
    void not_for(std::string_view driver, const std::vector<std::string_view>& keys);

    // Complains at the key, or at the section when the key is missing.
    void complain(std::string_view key, std::string_view message);
    // Complains of every key that no getter was asked for. Call it last.
    void finish();

private:
    const toml::node* take(std::string_view key);
    std::optional<std::string> read_string(std::string_view key);
    void choose(std::string_view key, const std::vector<std::string_view>& words, size_t& index);
    void wrong_type(std::string_view key, const toml::node& node, std::string_view wanted);
    std::string where() const; // " in [machine]"; nothing for the file's top

    Complaints& complaints_;
    std::string title_;
    const toml::table* table_;
    std::vector<std::string_view> known_;
};

} // namespace liveupdate::supervisor
