#include "supervisor/control_protocol.hpp"

#include <cerrno>
#include <nlohmann/json.hpp>

namespace liveupdate::supervisor {
namespace {

constexpr std::string_view kPermissionDenied = "permission-denied";

constexpr ErrorCode kAllCodes[] = {ErrorCode::kInternal, ErrorCode::kSystem, ErrorCode::kTimeout,
    ErrorCode::kPeerGone, ErrorCode::kProtocol, ErrorCode::kRefused, ErrorCode::kInvalid,
    ErrorCode::kUnsupported, ErrorCode::kAborted, ErrorCode::kNotFound, ErrorCode::kBusy};

} // namespace

nlohmann::json error_to_json(const Error& error) {
    const bool denied =
        error.code == ErrorCode::kSystem && (error.system_errno == EACCES || error.system_errno == EPERM);
    return {{"code", denied ? kPermissionDenied : to_string(error.code)}, {"message", error.message}};
}

Error error_from_json(const nlohmann::json& json) {
    const auto text = [&json](const char* key) -> const std::string* {
        const auto found = json.is_object() ? json.find(key) : json.end();
        return found == json.end() ? nullptr : found->get_ptr<const std::string*>();
    };
    const std::string* const code = text("code");
    const std::string* const message = text("message");
    if (!code || !message)
        return {ErrorCode::kProtocol, "the supervisor answered with an error without words"};
    if (*code == kPermissionDenied) return {ErrorCode::kSystem, *message, EACCES};
    for (const ErrorCode known : kAllCodes)
        if (to_string(known) == *code) return {known, *message};
    return {ErrorCode::kInternal, *message};
}

std::string to_line(const nlohmann::json& json) {
    return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

Result<nlohmann::json> parse_request(std::string_view line) {
    bool too_deep = false;
    const auto limit = [&too_deep](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
        too_deep = too_deep || depth > kDeepestRequest;
        return !too_deep;
    };
    nlohmann::json request = nlohmann::json::parse(line, limit, false);
    if (too_deep)
        return Error(ErrorCode::kInvalid,
            "the request is nested deeper than " + std::to_string(kDeepestRequest) + " levels");
    if (request.is_discarded())
        return Error(ErrorCode::kInvalid, "the request is not JSON; send one object a line");
    const auto command = request.is_object() ? request.find("command") : request.end();
    if (command == request.end() || !command->is_string())
        return Error(ErrorCode::kInvalid, "the request is no object with a string \"command\"");
    return request;
}

} // namespace liveupdate::supervisor
