// Places of this host at which a QEMU guest listens, as tests come to them.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <string>
#include <vector>

#include "supervisor/qemu/qmp.hpp"
#include "tests/integration/qemu_checks.hpp"

namespace liveupdate::tests {

using supervisor::Outcome;
using supervisor::qemu::QmpChannel;

inline constexpr auto kAnswerTime = std::chrono::seconds(20);

inline sockaddr_in loopback(uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    return address;
}

// At a port of the loopback interface; 0: one that nobody has.
inline UniqueFd bound(int type, uint16_t port = 0) {
    UniqueFd socket(::socket(AF_INET, type | SOCK_CLOEXEC, 0));
    const sockaddr_in address = loopback(port);
    const int on = 1;
    REQUIRE(::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0);
    REQUIRE(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
    return socket;
}
inline uint16_t port_of(const UniqueFd& socket) {
    sockaddr_in address{};
    socklen_t size = sizeof(address);
    REQUIRE(::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
    return ntohs(address.sin_port);
}
inline uint16_t free_port(int type = SOCK_STREAM) {
    return port_of(bound(type));
}

inline Result<UniqueFd> tcp_connect(uint16_t port) {
    UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_in address = loopback(port);
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) < 0)
        return Error::from_errno("connect");
    return socket;
}

// A monitor of the test's own, and what it says of the guest.
inline Result<QmpChannel> monitor_at(Result<UniqueFd> socket) {
    if (!socket) return std::move(socket).error();
    return QmpChannel::open(std::move(*socket), Deadline::after(kAnswerTime));
}

inline std::string strings(const std::vector<std::string>& all) {
    return nlohmann::json(all).dump();
}

inline void update_to(LiveVm& vm, const std::string& binary) {
    const auto record = vm.update(binary);
    REQUIRE_MESSAGE(record, record.error().message);
    REQUIRE_MESSAGE(record->outcome == Outcome::kCompleted, record->reason);
    CHECK_MESSAGE(record->notes.empty(), record->notes[0]);
}

} // namespace liveupdate::tests
