// A virtio driver that does what the fuzzer says, over a device without a thread. What the device writes
// outside the guest's RAM, which is two pieces of the heap, AddressSanitizer sees.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <vector>

#include "tests/fuzz/input.hpp"
#include "vmm/boot/memory_map.hpp"
#include "vmm/devices/virtio/virtio_device.hpp"

namespace liveupdate::fuzz {

class Ram {
public:
    static constexpr uint64_t kSeam = 64 << 10; // side by side for the guest, apart on the host
    static constexpr uint64_t kSize = 128 << 10;

    const vmm::GuestMemory& memory() const { return memory_; }
    // As far as they lie in RAM.
    void put(uint64_t gpa, std::span<const uint8_t> bytes);
    template <typename T>
    void put(uint64_t gpa, const T& value) {
        put(gpa, {reinterpret_cast<const uint8_t*>(&value), sizeof value});
    }

private:
    std::unique_ptr<uint64_t[]> low_ = std::make_unique<uint64_t[]>(kSeam / 8);
    std::unique_ptr<uint64_t[]> high_ = std::make_unique<uint64_t[]>((kSize - kSeam) / 8);
    vmm::GuestMemory memory_ = *vmm::GuestMemory::over({{0, kSeam, 0, 0}, {kSeam, kSize - kSeam, 1, 0}},
        std::vector<std::span<uint8_t>>{{reinterpret_cast<uint8_t*>(low_.get()), kSeam},
            {reinterpret_cast<uint8_t*>(high_.get()), kSize - kSeam}});
};

struct Interrupt final : vmm::virtio::EdgeInterrupt {
    void raise() override {}
};

class Driver {
public:
    // `back_end` does something at the device's other end.
    Driver(Ram& ram, vmm::virtio::VirtioDevice& device, std::function<void(Input&)> back_end);

    // Opens the device and obeys the input, until it is used up.
    void obey(Input& input);

private:
    static constexpr uint64_t kQueueBytes = 0x2000; // descriptors, at 0x1000 available, at 0x1800 used ring
    static constexpr uint32_t kLaidOut = 8;         // queues that have a place of their own

    void step(Input& input);
    void write(uint64_t offset, unsigned size, uint64_t value);
    void set(uint64_t offset, uint32_t value) { write(offset, 4, value); }
    void agree(uint64_t features);
    void set_up(uint32_t queue, uint16_t size);
    void describe(Input& input);
    void offer(uint32_t queue, uint16_t head);
    void save_and_load();

    Ram& ram_;
    vmm::virtio::VirtioDevice& device_;
    std::function<void(Input&)> back_end_;
    std::array<uint16_t, kLaidOut> size_{};
    std::array<uint16_t, kLaidOut> next_{};
};

} // namespace liveupdate::fuzz
