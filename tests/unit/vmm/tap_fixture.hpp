// A tap device in a network namespace of its own, and the host's end of it: for tests with the right to make
// one (CAP_NET_ADMIN and CAP_SYS_ADMIN).
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "handoff/base/fd.hpp"
#include "vmm/devices/virtio/tap.hpp"

namespace liveupdate::vmm::test {

using Packet = std::vector<uint8_t>;

class TapHost {
public:
    // Null, and said so, where it cannot be. The calling thread is in the namespace until the host goes.
    static std::unique_ptr<TapHost> make(int queues = 1) {
        std::unique_ptr<TapHost> host(new TapHost);
        host->before_ = UniqueFd(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
        if (!host->before_ || ::unshare(CLONE_NEWNET) < 0) {
            host->before_.reset();
            MESSAGE("SKIPPED: no network namespace can be made here");
            return nullptr;
        }
        if (UniqueFd ipv6(::open("/proc/sys/net/ipv6/conf/default/disable_ipv6", O_WRONLY | O_CLOEXEC)); ipv6)
            CHECK(::write(ipv6.get(), "1", 1) == 1); // no packets of the host's own
        for (int i = 0; i < queues; ++i)
            if (!host->add_queue(queues)) {
                MESSAGE("SKIPPED: /dev/net/tun makes no tap device here");
                return nullptr;
            }
        host->bring_up();
        return host;
    }
    ~TapHost() {
        if (before_) ::setns(before_.get(), CLONE_NEWNET);
    }

    // Another descriptor of each queue, as another process would have it.
    std::vector<virtio::Tap> taps() const {
        std::vector<virtio::Tap> taps;
        for (const UniqueFd& queue : queues_) {
            auto tap = virtio::Tap::adopt(std::move(*fd::dup(queue.get())));
            REQUIRE_MESSAGE(tap, (tap ? "" : tap.error().message));
            taps.push_back(std::move(*tap));
        }
        return taps;
    }
    int queue(size_t index) const { return queues_[index].get(); }
    bool attached(size_t index) const {
        ifreq request{};
        REQUIRE(::ioctl(queues_[index].get(), TUNGETIFF, &request) == 0);
        return (request.ifr_flags & IFF_DETACH_QUEUE) == 0;
    }

    void send(const Packet& packet) const {
        REQUIRE(
            ::send(socket_.get(), packet.data(), packet.size(), 0) == static_cast<ssize_t>(packet.size()));
    }
    // The next packet from the card; empty when none comes in time.
    Packet receive(int timeout_ms = 20000) const {
        pollfd poll{socket_.get(), POLLIN, 0};
        if (::poll(&poll, 1, timeout_ms) != 1) return {};
        Packet packet(128 * 1024);
        const ssize_t got = ::recv(socket_.get(), packet.data(), packet.size(), 0);
        REQUIRE(got >= 0);
        packet.resize(static_cast<size_t>(got));
        return packet;
    }
    // Whether the host segments what it sends to the card, or leaves that to it.
    bool leaves_tcp_segmentation() const {
        ethtool_value value{};
        value.cmd = ETHTOOL_GTSO;
        ifreq request = named();
        request.ifr_data = reinterpret_cast<char*>(&value);
        REQUIRE(::ioctl(socket_.get(), SIOCETHTOOL, &request) == 0);
        return value.data != 0;
    }

private:
    TapHost() = default;
    static ifreq named() {
        ifreq request{};
        std::strcpy(request.ifr_name, "test0");
        return request;
    }
    bool add_queue(int queues) {
        UniqueFd queue(::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
        ifreq request = named();
        request.ifr_flags =
            static_cast<short>(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (queues > 1 ? int{IFF_MULTI_QUEUE} : 0));
        int header = 12;
        if (!queue || ::ioctl(queue.get(), TUNSETIFF, &request) < 0 ||
            ::ioctl(queue.get(), TUNSETVNETHDRSZ, &header) < 0)
            return false;
        queues_.push_back(std::move(queue));
        return true;
    }
    void bring_up() {
        socket_ = UniqueFd(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));
        REQUIRE(socket_);
        ifreq request = named();
        REQUIRE(::ioctl(socket_.get(), SIOCGIFINDEX, &request) == 0);
        const int index = request.ifr_ifindex;
        request = named();
        request.ifr_flags = IFF_UP;
        REQUIRE(::ioctl(socket_.get(), SIOCSIFFLAGS, &request) == 0);
        const int on = 1;
        REQUIRE(::setsockopt(socket_.get(), SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on) == 0);
        sockaddr_ll address{};
        address.sll_family = AF_PACKET;
        address.sll_protocol = __builtin_bswap16(ETH_P_ALL);
        address.sll_ifindex = index;
        REQUIRE(::bind(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    }

    UniqueFd before_;
    std::vector<UniqueFd> queues_;
    UniqueFd socket_;
};

} // namespace liveupdate::vmm::test
