#include "vmm/devices/virtio/queue.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <string>
#include <utility>

namespace liveupdate::vmm::virtio {
namespace {

constexpr uint16_t kNext = 1;
constexpr uint16_t kWrite = 2;
constexpr uint16_t kIndirect = 4;
constexpr size_t kDescriptorBytes = 16;
constexpr size_t kUsedElementBytes = 8;
constexpr uint16_t kNoInterrupt = 1; // available ring's flags
constexpr uint16_t kNoNotify = 1;    // used ring's flags
// Offsets in both rings.
constexpr size_t kFlags = 0;
constexpr size_t kIndex = 2;
constexpr size_t kRing = 4;
// A chain of more bytes is against the standard (2.7.4.1).
constexpr uint64_t kMaxChainBytes = UINT32_MAX;

Error broken(const std::string& why) {
    return {ErrorCode::kRefused, why};
}

Result<std::span<uint8_t>> ring_at(
    const GuestMemory& memory, const char* what, uint64_t gpa, uint64_t size, uint64_t alignment) {
    if (gpa % alignment != 0)
        return broken(std::string(what) + " at " + describe_range(gpa, size) + " is not aligned to " +
                      std::to_string(alignment) + " bytes");
    auto bytes = memory.at(gpa, size);
    if (!bytes) return std::move(bytes).error().context(what);
    return bytes;
}

// Whether an event index asks for an event when an index went from `before` to `now` (2.7.10).
bool crossed(uint16_t event, uint16_t now, uint16_t before) {
    return static_cast<uint16_t>(now - event - 1) < static_cast<uint16_t>(now - before);
}

} // namespace

void Chain::clear() {
    head = 0;
    readable.clear();
    writable.clear();
    readable_bytes = writable_bytes = 0;
}

bool take_front(std::vector<Segment>& segments, std::span<uint8_t> into) {
    size_t whole = 0; // segments that are used up
    while (!into.empty()) {
        if (whole == segments.size()) return false;
        Segment& segment = segments[whole];
        const size_t part = std::min(into.size(), segment.bytes.size());
        std::copy_n(segment.bytes.begin(), part, into.begin());
        into = into.subspan(part);
        segment.gpa += part;
        segment.bytes = segment.bytes.subspan(part);
        if (segment.bytes.empty()) ++whole;
    }
    segments.erase(segments.begin(), segments.begin() + static_cast<std::ptrdiff_t>(whole));
    // The bytes are judged now: the compiler must not fetch them from the guest's memory again.
    std::atomic_signal_fence(std::memory_order_seq_cst);
    return true;
}

size_t write_front(std::span<const Segment> segments, std::span<const uint8_t> bytes) {
    size_t written = 0;
    for (const Segment& segment : segments) {
        const size_t part = std::min(bytes.size() - written, segment.bytes.size());
        std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(written), part, segment.bytes.begin());
        written += part;
    }
    return written;
}

Result<Queue> Queue::open(
    const GuestMemory& memory, const Layout& layout, uint64_t features, const Position& position) {
    if (!std::has_single_bit(layout.size) || layout.size > kMaxQueueSize)
        return broken("a queue of " + std::to_string(layout.size) + " descriptors cannot be");
    Queue queue(memory, layout, features, position);
    const uint64_t size = layout.size;
    TRY_ASSIGN(queue.descriptors_,
        ring_at(memory, "descriptor table", layout.descriptors, kDescriptorBytes * size, 16));
    TRY_ASSIGN(
        queue.available_, ring_at(memory, "available ring", layout.available, kRing + 2 * size + 2, 2));
    TRY_ASSIGN(
        queue.used_, ring_at(memory, "used ring", layout.used, kRing + kUsedElementBytes * size + 2, 4));
    return queue;
}

Queue::Queue(const GuestMemory& memory, const Layout& layout, uint64_t features, const Position& position)
    : memory_(&memory), layout_(layout), features_(features), position_(position) {}

uint16_t Queue::load16(uint8_t* at) const {
    return std::atomic_ref(*reinterpret_cast<uint16_t*>(at)).load(std::memory_order_acquire);
}

void Queue::store16(uint8_t* at, uint16_t value) const {
    std::atomic_ref(*reinterpret_cast<uint16_t*>(at)).store(value, std::memory_order_release);
}

// A copy that the guest cannot change any more.
Queue::Descriptor Queue::descriptor(std::span<const uint8_t> table, uint32_t index) const {
    Descriptor copy{};
    static_assert(sizeof copy == kDescriptorBytes);
    std::memcpy(&copy, table.data() + size_t{index} * kDescriptorBytes, sizeof copy);
    std::atomic_signal_fence(std::memory_order_seq_cst);
    return copy;
}

Result<bool> Queue::pop(Chain& chain) {
    const uint16_t available = load16(available_.data() + kIndex);
    const auto waiting = static_cast<uint16_t>(available - position_.next_available);
    if (waiting == 0) return false;
    if (waiting > layout_.size)
        return broken("the available ring's index is " + std::to_string(waiting) + " ahead of a queue of " +
                      std::to_string(layout_.size));
    const size_t place = position_.next_available % layout_.size;
    const uint16_t head = load16(available_.data() + kRing + 2 * place);
    TRY(walk(head, chain));
    ++position_.next_available;
    return true;
}

Result<void> Queue::walk(uint16_t head, Chain& chain) const {
    chain.clear();
    chain.head = head;
    uint32_t budget = layout_.size; // buffers in a chain (2.7.5.3.1), which also ends every loop
    return walk_table(Table::kOfQueue, descriptors_, layout_.size, head, chain, budget);
}

// Which table it is cannot be told by its place: an indirect one may lie where the queue's own does.
Result<void> Queue::walk_table(Table kind, std::span<const uint8_t> table, uint32_t entries, uint32_t first,
    Chain& chain, uint32_t& budget) const {
    for (uint32_t index = first;;) {
        if (index >= entries)
            return broken("descriptor " + std::to_string(index) + " of " + std::to_string(entries));
        const Descriptor current = descriptor(table, index);
        if ((current.flags & kIndirect) != 0) {
            if (kind == Table::kIndirect) return broken("an indirect table in an indirect table");
            if ((features_ & kFeatureIndirectDesc) == 0) return broken("an indirect table was not agreed on");
            if ((current.flags & kNext) != 0) return broken("a descriptor after an indirect table");
            return walk_indirect(current, chain, budget);
        }
        if (budget-- == 0) return broken("a chain longer than its queue, or a loop");
        TRY(add_buffer(current, chain));
        if ((current.flags & kNext) == 0) return {};
        index = current.next;
    }
}

Result<void> Queue::walk_indirect(const Descriptor& outer, Chain& chain, uint32_t& budget) const {
    if (outer.length == 0 || outer.length % kDescriptorBytes != 0)
        return broken("an indirect table of " + std::to_string(outer.length) + " bytes");
    auto table = memory_->at(outer.address, outer.length);
    if (!table) return std::move(table).error().context("indirect table");
    const auto entries = static_cast<uint32_t>(outer.length / kDescriptorBytes);
    return walk_table(Table::kIndirect, *table, entries, 0, chain, budget);
}

Result<void> Queue::add_buffer(const Descriptor& from, Chain& chain) const {
    const bool writable = (from.flags & kWrite) != 0;
    if (!writable && !chain.writable.empty()) return broken("a readable buffer after a writable one");
    if (chain.readable_bytes + chain.writable_bytes + from.length > kMaxChainBytes)
        return broken("a chain of 4 GiB or more");
    uint64_t gpa = from.address;
    for (uint64_t left = from.length; left > 0;) {
        // RAM that the guest sees as one stretch may consist of several blocks on the host.
        auto part = memory_->leading(gpa, left);
        if (!part) return std::move(part).error().context("buffer");
        (writable ? chain.writable : chain.readable).push_back({gpa, *part});
        gpa += part->size();
        left -= part->size();
    }
    (writable ? chain.writable_bytes : chain.readable_bytes) += from.length;
    return {};
}

void Queue::unpop(uint16_t count) {
    // The driver leaves the places of buffers that it has not got back as they are.
    position_.next_available = static_cast<uint16_t>(position_.next_available - count);
}

void Queue::push(uint16_t head, uint32_t written) {
    stage(head, written);
    publish();
}

void Queue::stage(uint16_t head, uint32_t written) {
    const size_t place = position_.next_used % layout_.size;
    const uint32_t element[2] = {head, written};
    std::memcpy(used_.data() + kRing + kUsedElementBytes * place, element, sizeof element);
    ++position_.next_used;
    if (memory_->write_log().on()) note_given_back(head);
}

// All that the device may have written: a driver that has changed the chain meanwhile has spoilt its own
// copy.
void Queue::note_given_back(uint16_t head) const {
    Chain chain;
    if (!walk(head, chain)) return;
    for (const Segment& segment : chain.writable)
        memory_->note_write(segment.gpa, segment.bytes.size());
    note_used_ring();
}

void Queue::publish() {
    store16(used_.data() + kIndex, position_.next_used);
    note_used_ring();
}

bool Queue::needs_interrupt() {
    const uint16_t before = std::exchange(position_.signalled_used, position_.next_used);
    if (before == position_.next_used) return false; // nothing was pushed
    // The driver writes what it waits for and then looks at the index, we the other way round.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if ((features_ & kFeatureEventIdx) == 0) return (load16(available_.data() + kFlags) & kNoInterrupt) == 0;
    const uint16_t event = load16(available_.data() + kRing + 2 * size_t{layout_.size});
    return crossed(event, position_.next_used, before);
}

bool Queue::expect_kick() {
    if ((features_ & kFeatureEventIdx) != 0)
        store16(used_.data() + kRing + kUsedElementBytes * layout_.size, position_.next_available);
    else
        store16(used_.data() + kFlags, 0);
    note_used_ring();
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return has_buffers();
}

bool Queue::has_buffers() const {
    return load16(available_.data() + kIndex) != position_.next_available;
}

void Queue::suppress_kicks() {
    // With event indices nothing is to be done: the one that is there lies behind us.
    if ((features_ & kFeatureEventIdx) == 0) store16(used_.data() + kFlags, kNoNotify);
    note_used_ring();
}

} // namespace liveupdate::vmm::virtio
