#pragma once
/// The driver's side of virtio 1.2 over MMIO, for ring 3: one device's registers, and split rings that are
/// polled. One vCPU drives a device.
#include <cstdint>

namespace tests::guests {

/// VirtDescriptor::flags (2.7.5).
inline constexpr std::uint16_t kNext = 1;
inline constexpr std::uint16_t kDeviceWrites = 2;
inline constexpr std::uint16_t kIndirect = 4;

struct VirtDescriptor {
    std::uint64_t address; ///< guest physical
    std::uint32_t length;  ///< bytes
    std::uint16_t flags;
    std::uint16_t next;
};
static_assert(sizeof(VirtDescriptor) == 16);

/// What the driver needs not be told (2.7.6), and the device need not (2.7.8).
inline constexpr std::uint16_t kNoInterrupt = 1;
inline constexpr std::uint16_t kNoNotify = 1;

/// A split queue of kSize descriptors, a power of two. All zero to begin with.
template <std::uint16_t kSize>
struct VirtQueue {
    static_assert(kSize > 0 && (kSize & (kSize - 1)) == 0);

    alignas(4096) VirtDescriptor descriptors[kSize];
    alignas(4096) volatile struct {
        std::uint16_t flags;
        std::uint16_t index;
        std::uint16_t ring[kSize];
        std::uint16_t used_event;
    } available;
    alignas(4096) volatile struct {
        std::uint16_t flags;
        std::uint16_t index;
        struct {
            std::uint32_t id;
            std::uint32_t length;
        } ring[kSize];
        std::uint16_t available_event;
    } used;
    std::uint16_t seen;

    /// The device never interrupts for this queue: whoever drives it looks by himself.
    void want_no_interrupts() { available.flags = kNoInterrupt; }

    /// Gives the device the chain that begins at descriptor `head`.
    void offer(std::uint16_t head) {
        available.ring[available.index % kSize] = head;
        __atomic_thread_fence(__ATOMIC_RELEASE);
        available.index = static_cast<std::uint16_t>(available.index + 1);
    }

    /// Whether the device wants to be told of what was offered. Once after each batch.
    bool wants_kick() const {
        // The device writes its flag and then looks at the index, we the other way round.
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        return (used.flags & kNoNotify) == 0;
    }

    /// The next chain that came back: its first descriptor, and how many bytes the device wrote.
    bool take(std::uint32_t& head, std::uint32_t& length) {
        if (seen == used.index) return false;
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        head = used.ring[seen % kSize].id;
        length = used.ring[seen % kSize].length;
        seen = static_cast<std::uint16_t>(seen + 1);
        return true;
    }

    /// Chains that are with the device, as far as the driver has looked.
    std::uint16_t outstanding() const { return static_cast<std::uint16_t>(available.index - seen); }
};

class VirtioDevice {
public:
    /// The first device of a type (5) at the places that the command line names: `mmio` (0xd0000000),
    /// `mmio_slots` (14) of them, `mmio_stride` (0x1000) bytes apart. False: there is none.
    bool find(std::uint32_t type);
    std::uint64_t address() const { return address_; }
    std::uint32_t status() const { return reg(0x70); }
    std::uint8_t config(std::uint64_t offset) const;

    /// Resets the device and agrees on VIRTIO_F_VERSION_1 and `features`, of the first 32. False: refused.
    bool agree(std::uint32_t features);
    /// After agree().
    template <std::uint16_t kSize>
    void set_queue(std::uint32_t number, VirtQueue<kSize>& queue) {
        set_queue(number, kSize, queue.descriptors, &queue.available, &queue.used);
    }
    /// The device works from now on. False: it does not.
    bool go();

    /// Tells the device of what was offered in a queue.
    void kick(std::uint32_t queue) { reg(0x50) = queue; }

private:
    volatile std::uint32_t& reg(std::uint64_t offset) const {
        return *reinterpret_cast<volatile std::uint32_t*>(address_ + offset);
    }
    void set_queue(std::uint32_t number, std::uint32_t size, const volatile void* descriptors,
        const volatile void* available, const volatile void* used);
    void set_address(std::uint64_t offset, const volatile void* at);

    std::uint64_t address_;
};

/// As a device sees it: RAM is mapped where it is.
inline std::uint64_t gpa_of(const volatile void* at) {
    return reinterpret_cast<std::uint64_t>(at);
}

} // namespace tests::guests
