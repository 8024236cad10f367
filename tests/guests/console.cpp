// Console guest: vCPU 0 drives a virtio console by polling. It writes numbered lines, or with echo=1 gives
// back every byte that it is given, in order.
//
// Options: echo (0); lines (0: endless) to write; wait (0: until `go` is 1; 1: from then on); those of
// virtio.hpp.
#include "tests/guests/runtime/cpu.hpp"
#include "tests/guests/runtime/guest.hpp"
#include "tests/guests/runtime/options.hpp"
#include "tests/guests/runtime/status.hpp"
#include "tests/guests/runtime/virtio.hpp"

namespace tests::guests {

const GuestKind kGuestKind = GuestKind::kConsole;

namespace {

constexpr std::uint32_t kConsoleType = 3;
constexpr std::uint16_t kQueueSize = 8;
constexpr std::uint64_t kBufferBytes = 64;
constexpr std::uint32_t kReceive = 0;
constexpr std::uint32_t kTransmit = 1;

VirtQueue<kQueueSize> queues[2];
unsigned char buffers[2][kQueueSize][kBufferBytes];
VirtioDevice device;

void offer(std::uint32_t queue, std::uint16_t buffer) {
    queues[queue].offer(buffer);
    if (queues[queue].wants_kick()) device.kick(queue);
}

bool bring_up() {
    if (!device.find(kConsoleType) || !device.agree(0)) return false;
    for (std::uint32_t i = 0; i < 2; ++i) {
        device.set_queue(i, queues[i]);
        const std::uint16_t flags = i == kReceive ? kDeviceWrites : 0;
        for (std::uint16_t b = 0; b < kQueueSize; ++b)
            queues[i].descriptors[b] = {gpa_of(buffers[i][b]), kBufferBytes, flags, 0};
    }
    if (!device.go()) return false;
    for (std::uint16_t b = 0; b < kQueueSize; ++b)
        offer(kReceive, b);
    return true;
}

bool may_send() {
    std::uint32_t buffer = 0, length = 0;
    while (queues[kTransmit].take(buffer, length)) {
    }
    return queues[kTransmit].outstanding() < kQueueSize;
}

// With may_send() only: the buffers come back in order.
void send(const unsigned char* bytes, std::uint32_t count) {
    VirtQueue<kQueueSize>& queue = queues[kTransmit];
    const auto buffer = static_cast<std::uint16_t>(queue.available.index % kQueueSize);
    for (std::uint32_t i = 0; i < count; ++i)
        buffers[kTransmit][buffer][i] = bytes[i];
    queue.descriptors[buffer].length = count;
    offer(kTransmit, buffer);
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
    std::uint32_t buffer = 0, length = 0;
    while (may_send() && queues[kReceive].take(buffer, length)) {
        if (length > 0) send(buffers[kReceive][buffer], length);
        add(header().console.received, length);
        offer(kReceive, static_cast<std::uint16_t>(buffer));
    }
}

} // namespace

void set_up() {
    put(header().console.up, bring_up() ? 1 : 0);
    if (header().console.up == 0) report_error(ErrorCode::kDeviceMissing, device.address(), 0);
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
