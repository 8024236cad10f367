// One queue of a tap device: the host's end of a network card (Linux, Documentation/networking/tuntap.rst).
// Packets carry a header of virtio_net_hdr_mrg_rxbuf's form in front, in both directions.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <span>

#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"

namespace liveupdate::vmm::virtio {

// What the reader of a tap may be given (linux/if_tun.h). Segmentation needs kTapChecksum, kTapEcn needs
// kTapTso4 or kTapTso6, and the two kTapUso come together.
inline constexpr unsigned kTapChecksum = 0x01;
inline constexpr unsigned kTapTso4 = 0x02;
inline constexpr unsigned kTapTso6 = 0x04;
inline constexpr unsigned kTapEcn = 0x08;
inline constexpr unsigned kTapUfo = 0x10;
inline constexpr unsigned kTapUso4 = 0x20;
inline constexpr unsigned kTapUso6 = 0x40;

class Tap {
public:
    // Refused: what is not a queue of a tap with packet headers of the expected size. Changes nothing about
    // the tap, which may be at work for another process.
    static Result<Tap> adopt(UniqueFd fd);
    // Of anything that reads and writes packets without waiting.
    explicit Tap(UniqueFd fd) : fd_(std::move(fd)) {}

    int fd() const { return fd_.get(); }
    // As readv(2) and writev(2); `parts` has at most IOV_MAX entries.
    ssize_t receive(std::span<const iovec> parts) const;
    ssize_t send(std::span<const iovec> parts) const;

    // Of the whole device, on any of its queues. Takes the host's network lock: never in a blackout.
    void set_offloads(unsigned offloads) const;
    // The host sends to attached queues only; what waits in a queue that is detached is lost.
    void attach() const;
    void detach() const;

private:
    UniqueFd fd_;
};

} // namespace liveupdate::vmm::virtio
