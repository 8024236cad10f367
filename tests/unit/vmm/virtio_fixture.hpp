// The driver's side of virtio, for tests: guest RAM with rings in it, and registers by their addresses.
#pragma once

#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "vmm/boot/memory_map.hpp"
#include "vmm/devices/virtio/edge_interrupt.hpp"
#include "vmm/devices/virtio/mmio_transport.hpp"
#include "vmm/devices/virtio/queue.hpp"

namespace liveupdate::vmm::test {

struct FakeInterrupt final : virtio::EdgeInterrupt {
    std::atomic<int> raised{0};
    void raise() override { ++raised; }
};

// Two regions that lie side by side for the guest and apart on the host.
class GuestRam {
public:
    static constexpr uint64_t kSeam = 1 << 20;
    static constexpr uint64_t kSize = 2 << 20;

    GuestRam() : low_(kSeam / 8), high_((kSize - kSeam) / 8) {}

    const GuestMemory& memory() const { return memory_; }
    uint8_t* at(uint64_t gpa) {
        return gpa < kSeam ? reinterpret_cast<uint8_t*>(low_.data()) + gpa
                           : reinterpret_cast<uint8_t*>(high_.data()) + (gpa - kSeam);
    }
    template <typename T>
    void put(uint64_t gpa, const T& value) {
        std::memcpy(at(gpa), &value, sizeof value);
    }
    template <typename T>
    T get(uint64_t gpa) {
        T value;
        std::memcpy(&value, at(gpa), sizeof value);
        return value;
    }

private:
    std::span<uint8_t> bytes(std::vector<uint64_t>& words) {
        return {reinterpret_cast<uint8_t*>(words.data()), words.size() * 8};
    }
    std::vector<uint64_t> low_; // of words, for their alignment
    std::vector<uint64_t> high_;
    GuestMemory memory_ = *GuestMemory::over({{0, kSeam, 0, 0}, {kSeam, kSize - kSeam, 1, 0}},
        std::vector<std::span<uint8_t>>{bytes(low_), bytes(high_)});
};

inline constexpr uint16_t kDescNext = 1;
inline constexpr uint16_t kDescWrite = 2;
inline constexpr uint16_t kDescIndirect = 4;

struct Desc {
    uint64_t address = 0;
    uint32_t length = 0;
    uint16_t flags = 0;
    uint16_t next = 0;
};

// One queue of a driver: the rings at fixed places of RAM.
struct DriverQueue {
    GuestRam& ram;
    uint16_t size = 16;
    uint64_t descriptors = 0x1000;
    uint64_t available = 0x6000;
    uint64_t used = 0x8000;
    uint16_t next_available = 0;
    uint16_t seen_used = 0;

    virtio::Queue::Layout layout() const { return {size, descriptors, available, used}; }
    void describe(uint16_t index, const Desc& desc) { ram.put(descriptors + 16 * uint64_t{index}, desc); }
    // A chain over consecutive descriptors from `head` on.
    void chain(uint16_t head, std::vector<Desc> parts) {
        for (size_t i = 0; i < parts.size(); ++i) {
            const bool last = i + 1 == parts.size();
            parts[i].next = static_cast<uint16_t>(head + i + 1);
            if (!last) parts[i].flags |= kDescNext;
            describe(static_cast<uint16_t>(head + i), parts[i]);
        }
    }
    void offer(uint16_t head) {
        ram.put(available + 4 + 2 * uint64_t(next_available % size), head);
        publish(static_cast<uint16_t>(next_available + 1));
    }
    void publish(uint16_t index) {
        next_available = index;
        std::atomic_ref(*reinterpret_cast<uint16_t*>(ram.at(available + 2))).store(index);
    }
    uint16_t used_index() const {
        return std::atomic_ref(*reinterpret_cast<uint16_t*>(ram.at(used + 2))).load();
    }
    // {id, length} of what the device has given back.
    std::array<uint32_t, 2> used_element(uint16_t index) const {
        return ram.get<std::array<uint32_t, 2>>(used + 4 + 8 * uint64_t(index % size));
    }
    void want_interrupt_at(uint16_t index) { ram.put(available + 4 + 2 * uint64_t{size}, index); }
    uint16_t kick_wanted_at() const { return ram.get<uint16_t>(used + 4 + 8 * uint64_t{size}); }
};

// A driver's way through the registers.
struct Registers {
    MmioDevice& device;

    uint32_t get(uint64_t offset) { return static_cast<uint32_t>(device.read(offset, 4)); }
    void set(uint64_t offset, uint32_t value) { device.write(offset, 4, value); }
    uint32_t status() { return get(0x70); }
    void agree(uint64_t features) {
        set(0x70, 0);
        set(0x70, 1);
        set(0x70, 3);
        set(0x24, 0);
        set(0x20, static_cast<uint32_t>(features));
        set(0x24, 1);
        set(0x20, static_cast<uint32_t>(features >> 32));
        set(0x70, 11);
    }
    void set_up(uint32_t index, const DriverQueue& queue) {
        set(0x30, index);
        set(0x38, queue.size);
        set(0x80, static_cast<uint32_t>(queue.descriptors));
        set(0x84, static_cast<uint32_t>(queue.descriptors >> 32));
        set(0x90, static_cast<uint32_t>(queue.available));
        set(0x94, 0);
        set(0xa0, static_cast<uint32_t>(queue.used));
        set(0xa4, 0);
        set(0x44, 1);
    }
    void drive() { set(0x70, 15); }
};

template <typename Condition>
bool eventually(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!condition()) {
        if (std::chrono::steady_clock::now() > end) return false;
        std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    return true;
}

} // namespace liveupdate::vmm::test
