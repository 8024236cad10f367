// Memory-mapped I/O: who answers at which guest physical address outside RAM.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "handoff/base/result.hpp"

namespace liveupdate::vmm {

// Called from any vCPU thread, several at once; the device locks itself. `offset` counts from the first
// claimed byte, `size` is 1, 2, 4 or 8 bytes, and offset + size never exceeds the claimed length.
class MmioDevice {
public:
    MmioDevice() = default;
    MmioDevice(const MmioDevice&) = delete;
    MmioDevice& operator=(const MmioDevice&) = delete;
    virtual ~MmioDevice() = default;

    // Only the low `size` bytes of the result count.
    virtual uint64_t read(uint64_t offset, unsigned size) = 0;
    virtual void write(uint64_t offset, unsigned size, uint64_t value) = 0;
};

// An access belongs to the device that claims all of its bytes. What nobody claims reads as all ones and
// swallows writes.
class MmioBus {
public:
    // Claims [first, first + length) for `device`, which must outlive the bus. Refused: an empty range, one
    // beyond the guest physical addresses, and one that overlaps another. Only before the first vCPU runs.
    Result<void> add(std::string owner, uint64_t first, uint64_t length, MmioDevice& device);

    // `data`: as many bytes as the access has, little-endian, as KVM reports them; 1 to 8.
    void read(uint64_t address, std::span<uint8_t> data) const;
    void write(uint64_t address, std::span<const uint8_t> data) const;

private:
    struct Range {
        uint64_t first;
        uint64_t end; // one past the last byte
        MmioDevice* device;
        std::string owner;
    };

    const Range* find(uint64_t address, size_t size) const;

    std::vector<Range> ranges_; // sorted by `first`, no two overlap
};

} // namespace liveupdate::vmm
