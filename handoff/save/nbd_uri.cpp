#include "handoff/save/nbd_uri.hpp"

#include "handoff/base/words.hpp"

namespace liveupdate::handoff::save {
namespace {

constexpr size_t kMostShown = 200;
constexpr std::string_view kTcp = "nbd://", kUnix = "nbd+unix://";

} // namespace

bool is_nbd_uri(std::string_view where) {
    const size_t end = where.find("://");
    if (end == std::string_view::npos) return false;
    const std::string_view scheme = where.substr(0, end);
    return scheme == "nbd" || scheme == "nbds" || scheme.starts_with("nbd+") || scheme.starts_with("nbds+");
}

Result<void> check_nbd_uri(const std::string& uri) {
    const std::string shown = "'" + printable(uri, kMostShown) + "' ";
    if (uri.starts_with(kUnix)) {
        if (uri.find("?socket=/") != std::string::npos || uri.find("&socket=/") != std::string::npos)
            return {};
        return Error(ErrorCode::kInvalid,
            shown + "does not say where the server listens; write nbd+unix:///EXPORT?socket=/PATH");
    }
    if (uri.starts_with(kTcp) && uri.size() > kTcp.size() && uri[kTcp.size()] != '/') return {};
    const std::string tls = uri.starts_with("nbds") ? "TLS is not supported; " : "";
    return Error(
        ErrorCode::kInvalid, shown + "cannot be read from; " + tls +
                                 "write nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=/PATH");
}

} // namespace liveupdate::handoff::save
