#include "vmm/devices/virtio/tap.hpp"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>

#include <string>

#include "vmm/devices/virtio/net_header.hpp"

namespace liveupdate::vmm::virtio {
namespace {

Error refused(const std::string& why) {
    return {ErrorCode::kRefused, "tap: " + why};
}

void set_queue(int fd, int flag) {
    ifreq request{};
    request.ifr_flags = static_cast<short>(flag);
    // An error says that the queue is already as it is to be, or that the device is no more.
    static_cast<void>(::ioctl(fd, TUNSETQUEUE, &request));
}

} // namespace

Result<Tap> Tap::adopt(UniqueFd fd) {
    ifreq request{};
    if (::ioctl(fd.get(), TUNGETIFF, &request) < 0) return refused("the descriptor is no network device's");
    const auto flags = static_cast<unsigned>(static_cast<unsigned short>(request.ifr_flags));
    constexpr unsigned kNeeded = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if ((flags & kNeeded) != kNeeded) return refused("a tap with IFF_NO_PI and IFF_VNET_HDR is needed");
    int header = 0;
    if (::ioctl(fd.get(), TUNGETVNETHDRSZ, &header) < 0 || header != int{sizeof(NetHeader)})
        return refused(
            "headers of " + std::to_string(header) + " bytes, not of " + std::to_string(sizeof(NetHeader)));
    const int status = ::fcntl(fd.get(), F_GETFL);
    if (status < 0 || (status & O_NONBLOCK) == 0) return refused("the descriptor would block");
    return Tap(std::move(fd));
}

ssize_t Tap::receive(std::span<const iovec> parts) const {
    return ::readv(fd_.get(), parts.data(), static_cast<int>(parts.size()));
}

ssize_t Tap::send(std::span<const iovec> parts) const {
    return ::writev(fd_.get(), parts.data(), static_cast<int>(parts.size()));
}

void Tap::set_offloads(unsigned offloads) const {
    // A packet that comes without its offload is still a packet, and one with too many is checked for.
    static_cast<void>(::ioctl(fd_.get(), TUNSETOFFLOAD, static_cast<unsigned long>(offloads)));
}

void Tap::attach() const {
    set_queue(fd_.get(), IFF_ATTACH_QUEUE);
}

void Tap::detach() const {
    set_queue(fd_.get(), IFF_DETACH_QUEUE);
}

} // namespace liveupdate::vmm::virtio
