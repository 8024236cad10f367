#include "supervisor/vnc_config.hpp"

#include <array>
#include <charconv>
#include <string_view>

namespace liveupdate::supervisor {
namespace {

constexpr std::string_view kUnix = "unix:";
constexpr unsigned kFirstPort = 5900;
constexpr unsigned kMostDisplays = UINT16_MAX - kFirstPort;
constexpr const char* kForm =
    "write \"HOST:DISPLAY\", for example \"127.0.0.1:1\", or \"unix:PATH\" with an absolute path";

// These listen at, or connect to, another place than the one that is moved.
constexpr std::array<std::string_view, 4> kElsewhere = {"to", "websocket", "reverse", "vnc"};

Result<void> check_options(std::string_view options) {
    while (!options.empty()) {
        const size_t end = std::min(options.find(','), options.size());
        const std::string_view name = options.substr(0, std::min(end, options.find('=')));
        for (const std::string_view refused : kElsewhere)
            if (name == refused)
                return Error(ErrorCode::kInvalid, "has the option '" + std::string(refused) +
                                                      "', which an update cannot carry over; leave it out");
        options.remove_prefix(std::min(end + 1, options.size()));
    }
    return {};
}

} // namespace

Result<VncConfig> parse_vnc(const std::string& text) {
    VncConfig vnc;
    const size_t end = std::min(text.find(','), text.size());
    const std::string address = text.substr(0, end);
    if (end < text.size()) vnc.options = text.substr(end + 1);
    TRY(check_options(vnc.options));
    if (address.starts_with(kUnix)) {
        vnc.path = address.substr(kUnix.size());
        if (vnc.path.empty() || vnc.path.front() != '/') return Error(ErrorCode::kInvalid, kForm);
        return vnc;
    }
    const size_t colon = address.rfind(':');
    if (colon == std::string::npos) return Error(ErrorCode::kInvalid, kForm);
    vnc.host = address.substr(0, colon);
    if (vnc.host.size() > 2 && vnc.host.front() == '[' && vnc.host.back() == ']')
        vnc.host = vnc.host.substr(1, vnc.host.size() - 2);
    unsigned display = 0;
    const char *first = address.data() + colon + 1, *last = address.data() + address.size();
    const auto [stop, problem] = std::from_chars(first, last, display);
    if (problem != std::errc() || stop != last || display > kMostDisplays)
        return Error(ErrorCode::kInvalid, kForm);
    vnc.port = static_cast<uint16_t>(kFirstPort + display);
    return vnc;
}

std::string to_string(const VncConfig& vnc) {
    if (!vnc.path.empty()) return std::string(kUnix) + vnc.path;
    const std::string host = vnc.host.find(':') == std::string::npos ? vnc.host : "[" + vnc.host + "]";
    return host + ":" + std::to_string(vnc.port - kFirstPort);
}

} // namespace liveupdate::supervisor
