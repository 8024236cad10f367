// The driver's buffers for packets that come in, gathered before a packet is taken from the tap: once it is
// taken it must have a place.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "vmm/devices/virtio/queue.hpp"
#include "vmm/devices/virtio/tap.hpp"

namespace liveupdate::vmm::virtio {

class ReceiveBuffers {
public:
    // Whether a packet may lie in several buffers (VIRTIO_NET_F_MRG_RXBUF).
    enum class Merge { kNever, kAllowed };

    // Takes buffers until a packet of `longest` bytes fits, or all that the driver can ever give; false when
    // the driver has to give more first, which it then kicks for. An error: the ring is broken.
    Result<bool> gather(Queue& queue, Merge merge, size_t longest);

    // Reads a packet from the tap into the buffers; as readv(2).
    ssize_t receive(const Tap& tap);
    // Whether a packet of `bytes` bytes, as receive() told, is whole; else the rest of it is lost.
    bool fits(size_t bytes) const { return bytes <= bytes_; }

    // From and to the beginning of the packet; no more than fits.
    void peek(std::span<uint8_t> bytes) const;
    void poke(std::span<const uint8_t> bytes);
    // How many buffers the first `bytes` bytes lie in.
    uint16_t count(size_t bytes) const;
    // Gives these to the driver, all at once.
    void deliver(Queue& queue, size_t bytes);

    // Leaves what is not delivered in the ring, for the next gather().
    void give_back(Queue& queue);
    // The queue is no more.
    void forget();

private:
    // readv() takes 1024 parts (IOV_MAX): these, one buffer's, and the byte that tells of longer packets.
    static constexpr size_t kEnoughParts = 500;
    static constexpr size_t kMostPartsOfBuffer = 500;

    struct Buffer {
        uint16_t head;
        uint32_t bytes;
        uint32_t parts;
    };
    bool enough(Merge merge, size_t longest) const;
    Result<void> add();

    Chain chain_; // scratch
    std::vector<Buffer> buffers_;
    std::vector<iovec> parts_; // of all buffers, in order
    size_t bytes_ = 0;
};

} // namespace liveupdate::vmm::virtio
