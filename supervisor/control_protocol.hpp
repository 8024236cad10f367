// The words of the control socket that both ends share; docs/control-protocol.md tells the whole.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "handoff/base/result.hpp"

namespace liveupdate::supervisor {

constexpr size_t kLongestRequest = size_t{64} << 10; // bytes of a line, its end included
constexpr size_t kLongestReply = size_t{4} << 20;
constexpr int kDeepestRequest = 16; // levels of nesting

// {"code": word, "message": text}. The word is ErrorCode's, or "permission-denied" for a system error with
// EACCES or EPERM, which is all that crosses of an errno.
nlohmann::json error_to_json(const Error& error);
// The reverse, from a peer: what is no such object is kProtocol in words.
Error error_from_json(const nlohmann::json& json);

// One line of the protocol, its "\n" included; bytes that are no UTF-8 are replaced.
std::string to_line(const nlohmann::json& json);

// A JSON object with a string "command"; kInvalid in words otherwise.
Result<nlohmann::json> parse_request(std::string_view line);

} // namespace liveupdate::supervisor
