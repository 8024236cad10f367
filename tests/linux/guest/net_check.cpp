#include "tests/linux/guest/net_check.hpp"

#include <arpa/inet.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tests/linux/guest/queues.hpp"
#include "tests/linux/pattern.hpp"

namespace linux_guest {
namespace {

constexpr std::uint64_t kSilenceNs = 60'000'000'000; // the peer does not end its stream
using ULL = unsigned long long;

sockaddr_in address_of(const std::string& address, std::uint16_t port) {
    sockaddr_in in{};
    in.sin_family = AF_INET;
    in.sin_port = htons(port);
    ::inet_pton(AF_INET, address.c_str(), &in.sin_addr);
    return in;
}

} // namespace

bool set_up_interface(const std::string& interface, const std::string& address) {
    const int fd = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    ifreq request{};
    std::strncpy(request.ifr_name, interface.c_str(), IFNAMSIZ - 1);
    const auto call = [&](unsigned long what, const char* name) {
        if (::ioctl(fd, what, &request) == 0) return true;
        error(text("net %s: %s: %s", interface.c_str(), name, std::strerror(errno)));
        return false;
    };
    const auto set_address = [&](const std::string& value) {
        const sockaddr_in in = address_of(value, 0);
        std::memcpy(&request.ifr_addr, &in, sizeof(in));
    };
    set_address(address);
    bool done = call(SIOCSIFADDR, "address");
    set_address("255.255.255.0");
    done = done && call(SIOCSIFNETMASK, "netmask");
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    done = done && call(SIOCSIFFLAGS, "up");
    ::close(fd);
    return done;
}

void NetCheck::connect() {
    const std::string state = "/sys/class/net/" + options_.interface + "/operstate";
    for (int waits = 0; waits < 200 && content_of(state.c_str()).starts_with("down"); ++waits)
        sleep_us(50'000);
    const sockaddr_in peer = address_of(options_.peer, kTcpPort);
    fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (::connect(fd_, reinterpret_cast<const sockaddr*>(&peer), sizeof(peer)) == 0) return;
    error(text("net: connect to %s: %s", options_.peer.c_str(), std::strerror(errno)));
    ::close(fd_);
    fd_ = -1;
}

void NetCheck::send_some() {
    if (options_.wander) next_cpu();
    buffer_.resize(options_.chunk);
    fill_stream(buffer_, kGuestToHost, sent_);
    const ssize_t n = ::send(fd_, buffer_.data(), buffer_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) sent_ += static_cast<std::uint64_t>(n);
    if (n < 0 && errno != EAGAIN) {
        error(text("net: send after %llu bytes: %s", ULL{sent_.load()}, std::strerror(errno)));
        broken_ = true;
    }
    next_send_ns_ = now_ns() + options_.pause_us * 1000;
}

bool NetCheck::receive_some() {
    buffer_.resize(65536);
    const ssize_t n = ::recv(fd_, buffer_.data(), buffer_.size(), MSG_DONTWAIT);
    if (n == 0) return false;
    if (n < 0) {
        if (errno == EAGAIN) return true;
        error(text("net: receive after %llu bytes: %s", ULL{received_.load()}, std::strerror(errno)));
        broken_ = true;
        return false;
    }
    const auto bytes = static_cast<std::size_t>(n);
    const std::size_t wrong = stream_mismatch({buffer_.data(), bytes}, kHostToGuest, received_);
    if (wrong != bytes) {
        error(text("net: byte %llu of the stream is wrong", ULL{received_.load() + wrong}));
        broken_ = true; // all that follows would be wrong too
    }
    received_ += bytes;
    return true;
}

// Sends until it is told to stop, ends its stream, and receives until the peer has ended its own.
void NetCheck::exchange(const std::atomic<bool>& stop) {
    bool ended = false;
    std::uint64_t heard_ns = now_ns();
    while (!broken_) {
        if (stop && !ended) {
            ::shutdown(fd_, SHUT_WR);
            ended = true;
        }
        const bool due = !ended && now_ns() >= next_send_ns_;
        pollfd poll{fd_, static_cast<short>(POLLIN | (due ? POLLOUT : 0)), 0};
        const std::uint64_t rest_ns = next_send_ns_ - std::min(next_send_ns_, now_ns());
        ::poll(&poll, 1, due || ended ? 500 : static_cast<int>(rest_ns / 1'000'000) + 1);
        if ((poll.revents & POLLOUT) != 0) send_some();
        if ((poll.revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
            heard_ns = now_ns();
            if (!receive_some()) break;
        }
        if (now_ns() - heard_ns < kSilenceNs) continue;
        error(text("net: nothing is received after %llu bytes", ULL{received_.load()}));
        break;
    }
    if (!ended && !broken_) error("net: the peer ended its stream too early");
}

void NetCheck::run(const std::atomic<bool>& stop) {
    if (fd_ < 0) return;
    exchange(stop);
    ::close(fd_);
}

std::string NetCheck::progress() const {
    return text("tcp sent=%llu received=%llu %s", ULL{sent_.load()}, ULL{received_.load()},
        queue_packets(options_.interface).c_str());
}

} // namespace linux_guest
