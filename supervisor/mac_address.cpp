#include "supervisor/mac_address.hpp"

#include <charconv>
#include <cstdio>

namespace liveupdate::supervisor {
namespace {

constexpr uint8_t kGroup = 0x01;
constexpr uint8_t kLocal = 0x02;

// FNV-1a with 64 bits, and MurmurHash3's last step, so that one character changes every byte. Written out
// because an address must never change with a library.
uint64_t hash(std::string_view text) {
    uint64_t value = 0xcbf29ce484222325;
    for (const char c : text)
        value = (value ^ static_cast<uint8_t>(c)) * 0x100000001b3;
    value = (value ^ value >> 33) * 0xff51afd7ed558ccd;
    value = (value ^ value >> 33) * 0xc4ceb9fe1a85ec53;
    return value ^ value >> 33;
}

} // namespace

Result<MacAddress> parse_mac(std::string_view text) {
    const Error wrong(ErrorCode::kInvalid,
        "'" + std::string(text) + "' is not an Ethernet address; write for example 52:54:00:12:34:56");
    MacAddress mac{};
    if (text.size() != 17) return wrong;
    for (size_t i = 0; i < mac.size(); ++i) {
        const char* const digits = text.data() + 3 * i;
        const auto parsed = std::from_chars(digits, digits + 2, mac[i], 16);
        if (parsed.ec != std::errc() || parsed.ptr != digits + 2) return wrong;
        if (i + 1 < mac.size() && digits[2] != ':') return wrong;
    }
    if ((mac[0] & kGroup) != 0)
        return Error(ErrorCode::kInvalid,
            "'" + std::string(text) + "' is the address of a group; the first byte of a card's is even");
    if (mac == MacAddress{}) return wrong;
    return mac;
}

std::string to_string(const MacAddress& mac) {
    char text[18];
    std::snprintf(
        text, sizeof text, "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
    return text;
}

MacAddress default_mac(std::string_view vm, unsigned index) {
    uint64_t value = hash(std::string(vm) + "/" + std::to_string(index));
    MacAddress mac{};
    for (uint8_t& byte : mac) {
        byte = static_cast<uint8_t>(value);
        value >>= 8;
    }
    mac[0] = static_cast<uint8_t>((mac[0] & ~kGroup) | kLocal);
    return mac;
}

} // namespace liveupdate::supervisor
