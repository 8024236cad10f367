#include "supervisor/host_forward.hpp"

#include <arpa/inet.h>

#include <charconv>
#include <optional>
#include <string_view>

namespace liveupdate::supervisor {
namespace {

constexpr std::string_view kTcp = "tcp", kUdp = "udp";

// Up to the next `end`, both taken off the front of `text`; none when there is no `end`.
std::optional<std::string_view> take_until(std::string_view& text, char end) {
    const size_t at = text.find(end);
    if (at == std::string_view::npos) return std::nullopt;
    const std::string_view word = text.substr(0, at);
    text.remove_prefix(at + 1);
    return word;
}

// Empty is every address, as 0.0.0.0 is.
bool read_address(std::string_view text, std::string& address) {
    in_addr parsed{};
    if (text.empty()) return true;
    if (::inet_pton(AF_INET, std::string(text).c_str(), &parsed) != 1) return false;
    if (parsed.s_addr != INADDR_ANY) address = text;
    return true;
}

bool read_port(std::string_view text, uint16_t& port) {
    const auto [stop, problem] = std::from_chars(text.data(), text.data() + text.size(), port);
    return problem == std::errc() && stop == text.data() + text.size() && port != 0;
}

bool read(std::string_view text, HostForward& forward) {
    const auto transport = take_until(text, ':');
    const auto host = take_until(text, ':');
    const auto host_port = take_until(text, '-');
    const auto guest = take_until(text, ':');
    if (!transport || !host || !host_port || !guest) return false;
    if (*transport != kTcp && *transport != kUdp) return false;
    forward.transport = *transport == kTcp ? Transport::kTcp : Transport::kUdp;
    return read_address(*host, forward.host) && read_port(*host_port, forward.host_port) &&
           read_address(*guest, forward.guest) && read_port(text, forward.guest_port);
}

} // namespace

Result<HostForward> parse_host_forward(const std::string& text) {
    HostForward forward;
    if (read(text, forward)) return forward;
    return Error(ErrorCode::kInvalid, "write \"PROTOCOL:[HOST]:PORT-[GUEST]:PORT\" with tcp or udp, IPv4 "
                                      "addresses and ports from 1 to 65535, for example "
                                      "\"tcp:127.0.0.1:2222-:22\"");
}

std::string to_string(const HostForward& forward) {
    const std::string_view transport = forward.transport == Transport::kTcp ? kTcp : kUdp;
    return std::string(transport) + ":" + forward.host + ":" + std::to_string(forward.host_port) + "-" +
           forward.guest + ":" + std::to_string(forward.guest_port);
}

bool at_same_place(const HostForward& one, const HostForward& other) {
    const bool same_host = one.host == other.host || one.host.empty() || other.host.empty();
    return one.transport == other.transport && same_host && one.host_port == other.host_port;
}

} // namespace liveupdate::supervisor
