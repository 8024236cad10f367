// Console guest: vCPU 0 drives a virtio console by polling. It writes numbered lines, or with echo=1 gives
// back every byte that it is given, in order.
//
// Options: echo (0); lines (0: endless) to write; wait (0: until `go` is 1; 1: from then on).
#include "tests/guests/runtime/cpu.hpp"
#include "tests/guests/runtime/guest.hpp"
#include "tests/guests/runtime/memory.hpp"
#include "tests/guests/runtime/options.hpp"
#include "tests/guests/runtime/status.hpp"

namespace tests::guests {

const GuestKind kGuestKind = GuestKind::kConsole;

namespace {

constexpr std::uint64_t kMmio = 0xd0000000;
constexpr std::uint64_t kStride = 0x1000;
constexpr std::uint64_t kSlots = 14;
constexpr std::uint32_t kConsoleId = 3;
constexpr std::uint16_t kQueueSize = 8;
constexpr std::uint64_t kBufferBytes = 64;
constexpr std::uint16_t kDeviceWrites = 2;

struct Descriptor {
    std::uint64_t address;
    std::uint32_t length;
    std::uint16_t flags;
    std::uint16_t next;
};
struct Queue {
    alignas(16) Descriptor descriptors[kQueueSize];
    alignas(16) struct {
        std::uint16_t flags;
        std::uint16_t index;
        std::uint16_t ring[kQueueSize];
    } available;
    alignas(16) struct {
        std::uint16_t flags;
        std::uint16_t index;
        struct {
            std::uint32_t id;
            std::uint32_t length;
        } ring[kQueueSize];
    } used;
    std::uint16_t seen;
    unsigned char buffers[kQueueSize][kBufferBytes];
};
alignas(4096) volatile Queue queues[2]; // receive, transmit

std::uint64_t device;

volatile std::uint32_t& reg(std::uint64_t offset) {
    return *reinterpret_cast<volatile std::uint32_t*>(device + offset);
}
void set_address(std::uint64_t offset, const volatile void* at) {
    reg(offset) = static_cast<std::uint32_t>(reinterpret_cast<std::uint64_t>(at));
    reg(offset + 4) = 0;
}

void offer(std::uint32_t queue, std::uint16_t buffer) {
    volatile Queue& q = queues[queue];
    const std::uint16_t index = q.available.index;
    q.available.ring[index % kQueueSize] = buffer;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    q.available.index = static_cast<std::uint16_t>(index + 1);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if ((q.used.flags & 1) == 0) reg(0x50) = queue;
}

bool bring_up() {
    for (std::uint64_t slot = 0; slot < kSlots; ++slot) {
        device = kMmio + slot * kStride;
        map_page(device);
        if (reg(0x00) == 0x74726976 && reg(0x08) == kConsoleId) break;
    }
    if (reg(0x08) != kConsoleId) return false;
    reg(0x70) = 0;
    reg(0x70) = 3;
    reg(0x24) = 0;
    reg(0x20) = 0;
    reg(0x24) = 1;
    reg(0x20) = 1; // VIRTIO_F_VERSION_1
    reg(0x70) = 11;
    for (std::uint32_t i = 0; i < 2; ++i) {
        volatile Queue& q = queues[i];
        reg(0x30) = i;
        reg(0x38) = kQueueSize;
        set_address(0x80, q.descriptors);
        set_address(0x90, &q.available);
        set_address(0xa0, &q.used);
        reg(0x44) = 1;
        for (std::uint16_t b = 0; b < kQueueSize; ++b) {
            q.descriptors[b].address = reinterpret_cast<std::uint64_t>(&q.buffers[b]);
            q.descriptors[b].length = kBufferBytes;
            q.descriptors[b].flags = i == 0 ? kDeviceWrites : 0;
        }
    }
    reg(0x70) = 15;
    for (std::uint16_t b = 0; b < kQueueSize; ++b)
        offer(0, b);
    return reg(0x70) == 15;
}

bool may_send() {
    return static_cast<std::uint16_t>(queues[1].available.index - queues[1].used.index) < kQueueSize;
}

// With may_send() only: the buffers come back in order.
void send(const volatile unsigned char* bytes, std::uint32_t count) {
    volatile Queue& q = queues[1];
    const auto buffer = static_cast<std::uint16_t>(q.available.index % kQueueSize);
    for (std::uint32_t i = 0; i < count; ++i)
        q.buffers[buffer][i] = bytes[i];
    q.descriptors[buffer].length = count;
    offer(1, buffer);
}

void send_line(std::uint64_t number) {
    unsigned char text[kBufferBytes] = {'l', 'i', 'n', 'e', ' '};
    std::uint64_t divisor = 1;
    while (number / divisor >= 10)
        divisor *= 10;
    std::uint32_t count = 5;
    for (; divisor > 0; divisor /= 10)
        text[count++] = static_cast<unsigned char>('0' + number / divisor % 10);
    text[count++] = '\n';
    send(text, count);
}

void echo() {
    volatile Queue& q = queues[0];
    while (q.seen != q.used.index && may_send()) {
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        const auto id = static_cast<std::uint16_t>(q.used.ring[q.seen % kQueueSize].id);
        const std::uint32_t length = q.used.ring[q.seen % kQueueSize].length;
        q.seen = static_cast<std::uint16_t>(q.seen + 1);
        if (length > 0) send(q.buffers[id], length);
        add(header().console.received, length);
        offer(0, id);
    }
}

} // namespace

void set_up() {
    put(header().console.up, bring_up() ? 1 : 0);
    if (header().console.up == 0) report_error(ErrorCode::kDiskMissing, device, 0);
}

void run(VcpuSlot& slot) {
    const bool echoes = option_number("echo", 0) != 0;
    const std::uint64_t lines = option_number("lines", 0);
    const std::uint64_t go = option_number("wait", 0);
    for (;;) {
        put(slot.now_tsc, read_tsc());
        add(slot.counter, 1);
        if (slot.index == 0) obey_stop();
        if (slot.index != 0 || header().console.up == 0) {
            pause();
            continue;
        }
        if (echoes) {
            echo();
        } else if (read_field(header().go) == go && may_send() &&
                   (lines == 0 || header().console.lines < lines)) {
            send_line(header().console.lines);
            add(header().console.lines, 1);
        }
        pause();
    }
}

} // namespace tests::guests
