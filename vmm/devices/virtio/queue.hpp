// A split virtqueue (virtio 1.2, section 2.7) from the device's side, over guest RAM.
//
// The guest is not trusted: it may write anything anywhere in the rings at any time. Every index and length
// is read once, checked, and only then used; an error means that the ring is broken, and the device stops
// until the guest resets it. Where the rings lie is looked up once, when the queue goes live.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <vector>

#include "handoff/base/result.hpp"
#include "vmm/boot/memory_map.hpp"

namespace liveupdate::vmm::virtio {

inline constexpr uint64_t kFeatureIndirectDesc = uint64_t{1} << 28;
inline constexpr uint64_t kFeatureEventIdx = uint64_t{1} << 29;
inline constexpr uint64_t kFeatureVersion1 = uint64_t{1} << 32;
inline constexpr uint64_t kRingFeatures = kFeatureIndirectDesc | kFeatureEventIdx | kFeatureVersion1;

inline constexpr uint16_t kMaxQueueSize = 1024; // of ours; the standard's limit is 32768

// A part of a buffer that is contiguous in guest RAM and on the host.
struct Segment {
    uint64_t gpa;
    std::span<uint8_t> bytes;
};

// One buffer of the driver: what the device reads, then what it writes. Reused from buffer to buffer.
struct Chain {
    uint16_t head = 0;
    std::vector<Segment> readable;
    std::vector<Segment> writable;
    uint64_t readable_bytes = 0;
    uint64_t writable_bytes = 0;

    void clear();
};

// Takes `count` bytes off the front of `segments` and copies them; false when there are fewer.
bool take_front(std::vector<Segment>& segments, std::span<uint8_t> into);
// Copies `bytes` to the front of `segments`, as far as they reach; how many that were.
size_t write_front(std::span<const Segment> segments, std::span<const uint8_t> bytes);

// Used by one thread at a time: the device's worker, or whoever has the worker on hold.
class Queue {
public:
    struct Layout {
        uint16_t size = 0;        // a power of two up to kMaxQueueSize
        uint64_t descriptors = 0; // guest physical addresses
        uint64_t available = 0;
        uint64_t used = 0;
    };
    // How far the device has come: what crosses an update beside the layout.
    struct Position {
        uint16_t next_available = 0;
        uint16_t next_used = 0;
        uint16_t signalled_used = 0; // next_used at the last decision about an interrupt
        bool operator==(const Position&) const = default;
    };

    // Refused: a size or an alignment that the standard does not allow, a ring that is not wholly in RAM, and
    // one across two regions of it. `memory` outlives the queue.
    static Result<Queue> open(
        const GuestMemory& memory, const Layout& layout, uint64_t features, const Position& position);

    // The next buffer; false when there is none. An error: the ring is broken for good.
    Result<bool> pop(Chain& chain);
    // The buffer that begins at `head` once more: for a request that is in flight.
    Result<void> walk(uint16_t head, Chain& chain) const;
    // Takes back the last `count` pops: those buffers are the next ones again. None of them was pushed.
    void unpop(uint16_t count);
    // Gives a buffer back; `written` bytes were put into its writable part.
    void push(uint16_t head, uint32_t written);
    // The same in two steps, for what lies in several buffers that the driver must see all at once.
    void stage(uint16_t head, uint32_t written);
    void publish();
    // Whether what was pushed since the last call wants an interrupt. Once after each batch.
    bool needs_interrupt();
    // Asks the driver to kick for the next buffer; true when one has come meanwhile, which nobody kicks for.
    bool expect_kick();
    // The driver need not kick: the device looks by itself.
    void suppress_kicks();
    // Whether the driver has offered what was not popped yet.
    bool has_buffers() const;

    uint16_t size() const { return layout_.size; }
    const Position& position() const { return position_; }

private:
    struct Descriptor {
        uint64_t address;
        uint32_t length;
        uint16_t flags;
        uint16_t next;
    };
    Queue(const GuestMemory& memory, const Layout& layout, uint64_t features, const Position& position);

    uint16_t load16(uint8_t* at) const;
    void store16(uint8_t* at, uint16_t value) const;
    Descriptor descriptor(std::span<const uint8_t> table, uint32_t index) const;
    enum class Table { kOfQueue, kIndirect };
    Result<void> walk_table(Table kind, std::span<const uint8_t> table, uint32_t entries, uint32_t first,
        Chain& chain, uint32_t& budget) const;
    Result<void> walk_indirect(const Descriptor& descriptor, Chain& chain, uint32_t& budget) const;
    Result<void> add_buffer(const Descriptor& descriptor, Chain& chain) const;
    void note_given_back(uint16_t head) const;
    void note_used_ring() const { memory_->note_write(layout_.used, used_.size()); }

    const GuestMemory* memory_;
    Layout layout_;
    uint64_t features_;
    Position position_;
    std::span<uint8_t> descriptors_;
    std::span<uint8_t> available_; // flags, idx, ring[size], used_event
    std::span<uint8_t> used_;      // flags, idx, ring[size] of {id, len}, avail_event
};

} // namespace liveupdate::vmm::virtio
