// Reading a supervisor's answer by JSON pointer ("/vmm/version"): what is missing or of another type, which a
// supervisor of another version may send, reads as the fallback.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "supervisor/cli/io.hpp"

namespace liveupdate::supervisor::cli {

inline const nlohmann::json* find(const nlohmann::json& json, const char* pointer) {
    const nlohmann::json::json_pointer where(pointer);
    if (!json.contains(where)) return nullptr;
    const nlohmann::json& value = json.at(where);
    return value.is_null() ? nullptr : &value;
}

inline std::string text_at(const nlohmann::json& json, const char* pointer, std::string fallback = "") {
    const auto* const value = find(json, pointer);
    return value && value->is_string() ? printable(value->get_ref<const std::string&>())
                                       : std::move(fallback);
}

inline uint64_t number_at(const nlohmann::json& json, const char* pointer, uint64_t fallback = 0) {
    const auto* const value = find(json, pointer);
    return value && value->is_number_unsigned() ? value->get<uint64_t>() : fallback;
}

inline bool true_at(const nlohmann::json& json, const char* pointer) {
    const auto* const value = find(json, pointer);
    return value && value->is_boolean() && value->get<bool>();
}

} // namespace liveupdate::supervisor::cli
