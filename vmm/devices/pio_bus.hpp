// Port I/O: who answers at which port.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "handoff/base/result.hpp"

namespace liveupdate::vmm {

// Called from any vCPU thread, several at once; the device locks itself. `offset` counts from the first
// claimed port, `size` is 1, 2 or 4 bytes, and offset + size never exceeds the claimed length.
class PioDevice {
public:
    PioDevice() = default;
    PioDevice(const PioDevice&) = delete;
    PioDevice& operator=(const PioDevice&) = delete;
    virtual ~PioDevice() = default;

    // Only the low `size` bytes of the result count.
    virtual uint32_t read(uint16_t offset, unsigned size) = 0;
    virtual void write(uint16_t offset, unsigned size, uint32_t value) = 0;
};

// An access belongs to the device that claims all of its ports. One that reaches over the end of a range is
// nobody's, as if the range were absent: a dword at 0xCF8 (PCI's address register) must not be taken for a
// byte at 0xCF9 (reset control). What nobody claims reads as all ones and swallows writes, as a bus without
// a driver on it does.
class PioBus {
public:
    // Claims [first, first + length) for `device`, which must outlive the bus. Refused: an empty range, one
    // beyond port 0xFFFF, and one that overlaps another. Only before the first vCPU runs.
    Result<void> add(std::string owner, uint16_t first, uint32_t length, PioDevice& device);

    uint32_t read(uint16_t port, unsigned size) const;
    void write(uint16_t port, unsigned size, uint32_t value) const;

    // String I/O as KVM reports it: `data` holds data.size() / size items of `size` bytes, little-endian, all
    // for the same port. A single access is a string of one.
    void read_string(uint16_t port, unsigned size, std::span<uint8_t> data) const;
    void write_string(uint16_t port, unsigned size, std::span<const uint8_t> data) const;

private:
    struct Range {
        uint32_t first;
        uint32_t end; // one past the last port
        PioDevice* device;
        std::string owner;
    };

    const Range* find(uint16_t port, unsigned size) const;

    std::vector<Range> ranges_; // sorted by `first`, no two overlap
};

} // namespace liveupdate::vmm
