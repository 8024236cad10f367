#include "tests/support/pinger.hpp"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <cstring>

#include "tests/linux/pattern.hpp"

namespace liveupdate::tests {
namespace {

constexpr uint16_t kId = 0x4c55;

uint64_t now_ns() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

sockaddr_in address(const char* text) {
    sockaddr_in in{};
    in.sin_family = AF_INET;
    ::inet_pton(AF_INET, text, &in.sin_addr);
    return in;
}

template <typename T>
uint16_t checksum(const T& packet) {
    std::array<uint16_t, sizeof(T) / 2> words{};
    std::memcpy(words.data(), &packet, sizeof(T));
    uint32_t sum = 0;
    for (const uint16_t word : words)
        sum += word;
    sum = (sum & 0xffff) + (sum >> 16);
    return static_cast<uint16_t>(~(sum + (sum >> 16)));
}

} // namespace

Pinger::Pinger(const char* guest, uint64_t hz, uint64_t window)
    : guest_(address(guest)), period_ns_(hz == 0 ? 0 : 1'000'000'000 / hz), window_(window) {}

bool Pinger::open() {
    fd_.reset(::socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP));
    const int bytes = 4 << 20;
    // Beyond the host's limit where that is allowed: an answer that finds no room here is not lost.
    if (::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes)) != 0)
        ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
    return static_cast<bool>(fd_);
}

uint64_t Pinger::next_ns() const {
    const uint64_t now = now_ns();
    return next_ns_ <= now ? 0 : next_ns_ - now;
}

void Pinger::send_due() {
    const uint64_t now = now_ns();
    if (!on() || next_ns_ == 0) next_ns_ = now;
    if (!on()) return;
    for (; next_ns_ <= now; next_ns_ += period_ns_)
        if (figures_.sent - figures_.answered < window_)
            send_one(now);
        else
            ++figures_.held_back;
}

void Pinger::send_one(uint64_t now) {
    Echo echo{};
    echo.icmp.type = ICMP_ECHO;
    echo.icmp.un.echo.id = htons(kId);
    echo.icmp.un.echo.sequence = htons(static_cast<uint16_t>(figures_.sent));
    echo.number = figures_.sent;
    echo.sent_ns = now;
    linux_guest::fill_stream(echo.rest, figures_.sent, 0);
    echo.icmp.checksum = checksum(echo);
    if (::sendto(fd_.get(), &echo, sizeof(echo), MSG_DONTWAIT, reinterpret_cast<const sockaddr*>(&guest_),
            sizeof(guest_)) != sizeof(echo)) {
        ++figures_.held_back;
        return;
    }
    ++figures_.sent;
    seen_.push_back(false);
}

void Pinger::receive_all() {
    std::array<uint8_t, 2048> packet{};
    for (;;) {
        const ssize_t n = ::recv(fd_.get(), packet.data(), packet.size(), MSG_DONTWAIT);
        if (n < 0) return;
        const size_t header = size_t{packet[0] & 0xfu} * 4;
        Echo echo{};
        if (static_cast<size_t>(n) < header + sizeof(echo)) continue;
        std::memcpy(&echo, packet.data() + header, sizeof(echo));
        if (echo.icmp.type == ICMP_ECHOREPLY && echo.icmp.un.echo.id == htons(kId)) take(echo);
    }
}

void Pinger::take(const Echo& echo) {
    if (echo.number >= figures_.sent ||
        linux_guest::stream_mismatch(echo.rest, echo.number, 0) != echo.rest.size() || checksum(echo) != 0) {
        ++figures_.damaged;
        return;
    }
    if (seen_[echo.number]) {
        ++figures_.doubled;
        return;
    }
    seen_[echo.number] = true;
    ++figures_.answered;
    if (echo.number < newest_) ++figures_.reordered;
    newest_ = std::max(newest_, echo.number);
    figures_.slowest_us = std::max(figures_.slowest_us, (now_ns() - echo.sent_ns) / 1000);
}

} // namespace liveupdate::tests
