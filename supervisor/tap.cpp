#include "supervisor/tap.hpp"

#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "handoff/base/fd.hpp"

namespace liveupdate::supervisor {
namespace {

constexpr int kHeaderBytes = 12; // virtio_net_hdr_mrg_rxbuf
constexpr uint32_t kEveryOffload = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_UFO;
constexpr uint32_t kUdpOffloads = 0x20 | 0x40; // TUN_F_USO4 and 6, since Linux 6.2

ifreq request_for(const std::string& name) {
    ifreq request{};
    std::strncpy(request.ifr_name, name.c_str(), IFNAMSIZ - 1);
    return request;
}

// How one makes the device by hand.
std::string recipe(const std::string& name, unsigned queues) {
    return "`ip tuntap add " + name + " mode tap" + (queues > 1 ? " multi_queue`" : "`");
}

Error explain(int error, const std::string& name, unsigned queues) {
    switch (error) {
    case EBUSY:
        return {ErrorCode::kBusy,
            "tap " + name +
                " is in use by another program; stop that, or give the guest "
                "another tap",
            error};
    case EPERM:
        return {ErrorCode::kSystem,
            "tap " + name + ": no permission; run as root, or make it with " + recipe(name, queues) +
                " and 'user' or 'group' for the supervisor's",
            error};
    case EINVAL:
        return {ErrorCode::kInvalid,
            name + " is no tap device for " + std::to_string(queues) + (queues > 1 ? " queues" : " queue") +
                "; make it with " + recipe(name, queues),
            error};
    default:
        return {ErrorCode::kSystem, "open tap " + name + ": " + std::strerror(error), error};
    }
}

Result<UniqueFd> open_queue(const std::string& name, unsigned queues, TapHeaders headers) {
    auto queue = fd::open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    if (!queue)
        return std::move(queue).error().context(
            "tap " + name + " needs the kernel's tun driver (`modprobe tun`)");
    ifreq request = request_for(name);
    const int flags = IFF_TAP | IFF_NO_PI | (headers == TapHeaders::kVirtio ? int{IFF_VNET_HDR} : 0) |
                      (queues > 1 ? int{IFF_MULTI_QUEUE} : 0);
    request.ifr_flags = static_cast<short>(flags);
    if (::ioctl(queue->get(), TUNSETIFF, &request) < 0) return explain(errno, name, queues);
    if (headers == TapHeaders::kNone) return queue;
    int header = kHeaderBytes;
    if (::ioctl(queue->get(), TUNSETVNETHDRSZ, &header) < 0)
        return Error::from_errno("set the size of packet headers of tap " + name);
    return queue;
}

uint32_t probe_offloads(int queue) {
    uint32_t offloads = kEveryOffload | kUdpOffloads;
    if (::ioctl(queue, TUNSETOFFLOAD, static_cast<unsigned long>(offloads)) < 0) offloads = kEveryOffload;
    static_cast<void>(::ioctl(queue, TUNSETOFFLOAD, 0ul)); // the guest's driver decides
    return offloads;
}

Result<uint32_t> read_mtu(const std::string& name) {
    const UniqueFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ifreq request = request_for(name);
    if (!socket || ::ioctl(socket.get(), SIOCGIFMTU, &request) < 0)
        return Error::from_errno("ask for the MTU of tap " + name);
    return static_cast<uint32_t>(request.ifr_mtu);
}

// A tap that is up has a carrier while somebody has one of its queues open. The kernel itself keeps two
// programs apart where there is but one queue.
bool in_use(const std::string& name) {
    const UniqueFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ethtool_value link{};
    link.cmd = ETHTOOL_GLINK;
    ifreq request = request_for(name);
    request.ifr_data = reinterpret_cast<char*>(&link);
    return socket && ::ioctl(socket.get(), SIOCETHTOOL, &request) == 0 && link.data != 0;
}

} // namespace

Result<OpenTap> open_tap(const std::string& name, unsigned queues, TapHeaders headers) {
    // TUNSETIFF would make it, and it would be gone with the guest.
    if (::if_nametoindex(name.c_str()) == 0)
        return Error(ErrorCode::kNotFound,
            "there is no network device " + name + "; make it with " + recipe(name, queues));
    if (queues > 1 && in_use(name)) return explain(EBUSY, name, queues);
    OpenTap tap;
    for (unsigned i = 0; i < queues; ++i) {
        TRY_ASSIGN(UniqueFd queue, open_queue(name, queues, headers));
        tap.queues.push_back(std::move(queue));
    }
    TRY_ASSIGN(tap.mtu, read_mtu(name));
    if (headers == TapHeaders::kVirtio) tap.offloads = probe_offloads(tap.queues.front().get());
    return tap;
}

} // namespace liveupdate::supervisor
