// Network guest: vCPU 0 drives the first network card by polling, at a fixed address, kNetworkGuest. It
// answers ARP and ICMP echo requests and sends UDP datagrams at port kNetworkEchoPort back; a frame is
// answered in the buffer in which it came. Other vCPUs do nothing.
//
// With pump=1 it also keeps kNetworkLanes echo requests to the host, kNetworkHost, in flight at every moment.
// The host's kernel answers them within the write to the tap, so that both ways are in use and no other
// program is. An answer that comes twice, unasked or changed is an error; one that never comes the host sees
// in `in_flight` after it has asked for quiet.
//
// Options: pump (0); bytes (64): of what a request of the pump carries, up to 1472; those of virtio.hpp.
#include "tests/guests/runtime/cpu.hpp"
#include "tests/guests/runtime/guest.hpp"
#include "tests/guests/runtime/options.hpp"
#include "tests/guests/runtime/status.hpp"
#include "tests/guests/runtime/virtio.hpp"

namespace tests::guests {

const GuestKind kGuestKind = GuestKind::kNetwork;

namespace {

constexpr std::uint32_t kNetworkType = 1;
constexpr std::uint32_t kFeatureMac = 1 << 5;
constexpr std::uint16_t kQueueSize = 256;
constexpr std::uint32_t kReceive = 0;
constexpr std::uint32_t kTransmit = 1;
// Descriptor i of either queue is buffer i's; those of the transmit queue that are left over are the lanes'.
constexpr std::uint16_t kBuffers = kQueueSize - kNetworkLanes;
constexpr std::uint64_t kBufferBytes = 2048;

// All numbers of the network's are big-endian, and none is aligned: offsets in a buffer, after virtio-net's
// own header (virtio 1.2, 5.1.6), which stays all zero: no offloads are agreed on.
constexpr std::uint64_t kHeaderBytes = 12;
constexpr std::uint64_t kEthernet = kHeaderBytes; // to, from, type
constexpr std::uint64_t kPacket = kEthernet + 14; // IP's or ARP's
constexpr std::uint64_t kMacBytes = 6;
constexpr std::uint64_t kArpBytes = 28;
constexpr std::uint64_t kIpBytes = 20; // without options
constexpr std::uint64_t kIcmpBytes = 8;
constexpr std::uint64_t kUdpBytes = 8;
constexpr std::uint64_t kPayload = kPacket + kIpBytes + kIcmpBytes; // of the pump's
constexpr std::uint64_t kMostPayload = 1500 - kIpBytes - kIcmpBytes;
constexpr std::uint16_t kTypeIp = 0x0800;
constexpr std::uint16_t kTypeArp = 0x0806;
constexpr std::uint16_t kArpRequest = 1;
constexpr std::uint16_t kArpReply = 2;
constexpr std::uint8_t kIcmp = 1;
constexpr std::uint8_t kUdp = 17;
constexpr std::uint8_t kEchoRequest = 8;
constexpr std::uint8_t kEchoReply = 0;
constexpr std::uint16_t kPumpId = 0x5550;
constexpr std::uint64_t kAskAgainUs = 100000;

using Bytes = unsigned char*;

struct Lane {
    bool with_device; // its buffer
    bool waits;       // for the answer
    std::uint64_t number;
};

VirtQueue<kQueueSize> queues[2];
alignas(4096) unsigned char buffers[kBuffers][kBufferBytes];
alignas(4096) unsigned char lane_buffers[kNetworkLanes][kBufferBytes];
std::uint32_t place_of[kBuffers]; // the queue whose device has the buffer
Lane lanes[kNetworkLanes];
bool offered[2]; // since the last kick
VirtioDevice card;
unsigned char own_mac[kMacBytes];
unsigned char host_mac[kMacBytes];
bool host_known;
std::uint64_t asked_tsc;
std::uint64_t pump_bytes;
std::uint64_t next_number = 1;
std::uint64_t newest_answer;

std::uint16_t get16(const unsigned char* at) {
    return static_cast<std::uint16_t>(at[0] << 8 | at[1]);
}
std::uint32_t get32(const unsigned char* at) {
    return std::uint32_t{get16(at)} << 16 | get16(at + 2);
}
void put16(Bytes at, std::uint64_t value) {
    at[0] = static_cast<unsigned char>(value >> 8);
    at[1] = static_cast<unsigned char>(value);
}
void put32(Bytes at, std::uint32_t value) {
    put16(at, value >> 16);
    put16(at + 2, value);
}
// Words of a payload are this processor's own.
std::uint64_t get_word(const unsigned char* at) {
    std::uint64_t word;
    __builtin_memcpy(&word, at, sizeof word);
    return word;
}
void put_word(Bytes at, std::uint64_t word) {
    __builtin_memcpy(at, &word, sizeof word);
}
void copy_mac(Bytes to, const unsigned char* from) {
    for (std::uint64_t i = 0; i < kMacBytes; ++i)
        to[i] = from[i];
}
void swap_bytes(Bytes a, Bytes b, std::uint64_t count) {
    for (std::uint64_t i = 0; i < count; ++i) {
        const unsigned char kept = a[i];
        a[i] = b[i];
        b[i] = kept;
    }
}

// RFC 1071, over an even number of bytes.
std::uint16_t checksum(const unsigned char* bytes, std::uint64_t count) {
    std::uint64_t sum = 0;
    for (std::uint64_t i = 0; i < count; i += 2) {
        std::uint16_t word;
        __builtin_memcpy(&word, bytes + i, sizeof word);
        sum += word;
    }
    while (sum >> 16 != 0)
        sum = (sum & 0xffff) + (sum >> 16);
    return __builtin_bswap16(static_cast<std::uint16_t>(~sum));
}

// --- Queues ---

bool bring_up() {
    if (!card.find(kNetworkType) || !card.agree(kFeatureMac)) return false;
    for (std::uint64_t i = 0; i < kMacBytes; ++i)
        own_mac[i] = card.config(i);
    for (std::uint32_t i = kReceive; i <= kTransmit; ++i) {
        queues[i].want_no_interrupts();
        card.set_queue(i, queues[i]);
    }
    return card.go();
}

void offer(std::uint32_t queue, std::uint16_t descriptor) {
    queues[queue].offer(descriptor);
    offered[queue] = true;
}

void receive_into(std::uint16_t buffer) {
    place_of[buffer] = kReceive;
    queues[kReceive].descriptors[buffer] = {gpa_of(buffers[buffer]), kBufferBytes, kDeviceWrites, 0};
    offer(kReceive, buffer);
}

// `length` with virtio-net's header, which is cleared.
void transmit(std::uint16_t descriptor, Bytes buffer, std::uint64_t length) {
    for (std::uint64_t i = 0; i < kHeaderBytes; ++i)
        buffer[i] = 0;
    queues[kTransmit].descriptors[descriptor] = {gpa_of(buffer), static_cast<std::uint32_t>(length), 0, 0};
    offer(kTransmit, descriptor);
}

void kick() {
    for (std::uint32_t queue = kReceive; queue <= kTransmit; ++queue) {
        if (!offered[queue]) continue;
        offered[queue] = false;
        if (!queues[queue].wants_kick()) continue;
        card.kick(queue);
        add(header().network.kicks, 1);
    }
}

// --- The pump ---

std::uint64_t word_of(std::uint64_t number, std::uint64_t i) {
    return (number + i) * 0x9e3779b97f4a7c15;
}

void ask_for_host() {
    const std::uint64_t now = read_tsc();
    if (lanes[0].with_device || (asked_tsc != 0 && now - asked_tsc < ticks_of_us(kAskAgainUs))) return;
    asked_tsc = now;
    const Bytes frame = lane_buffers[0];
    for (std::uint64_t i = 0; i < kMacBytes; ++i)
        frame[kEthernet + i] = 0xff;
    copy_mac(frame + kEthernet + kMacBytes, own_mac);
    put16(frame + kEthernet + 12, kTypeArp);
    const Bytes arp = frame + kPacket;
    put16(arp, 1); // Ethernet
    put16(arp + 2, kTypeIp);
    arp[4] = kMacBytes;
    arp[5] = 4;
    put16(arp + 6, kArpRequest);
    copy_mac(arp + 8, own_mac);
    put32(arp + 14, kNetworkGuest);
    for (std::uint64_t i = 0; i < kMacBytes; ++i)
        arp[18 + i] = 0;
    put32(arp + 24, kNetworkHost);
    lanes[0].with_device = true;
    transmit(kBuffers, frame, kPacket + kArpBytes);
}

void request(std::uint16_t index) {
    Lane& lane = lanes[index];
    const Bytes frame = lane_buffers[index];
    lane = {true, true, next_number++};
    copy_mac(frame + kEthernet, host_mac);
    copy_mac(frame + kEthernet + kMacBytes, own_mac);
    put16(frame + kEthernet + 12, kTypeIp);
    const Bytes ip = frame + kPacket;
    put16(ip, 0x4500);
    put16(ip + 2, kIpBytes + kIcmpBytes + pump_bytes);
    put16(ip + 4, 0);
    put16(ip + 6, 0x4000); // not to be fragmented
    put16(ip + 8, 0x4000 | kIcmp);
    put16(ip + 10, 0);
    put32(ip + 12, kNetworkGuest);
    put32(ip + 16, kNetworkHost);
    put16(ip + 10, checksum(ip, kIpBytes));
    const Bytes icmp = ip + kIpBytes;
    put16(icmp, kEchoRequest << 8);
    put16(icmp + 2, 0);
    put16(icmp + 4, kPumpId);
    put16(icmp + 6, index);
    put_word(frame + kPayload, lane.number);
    for (std::uint64_t i = 1; i < pump_bytes / 8; ++i)
        put_word(frame + kPayload + 8 * i, word_of(lane.number, i));
    put16(icmp + 2, checksum(icmp, kIcmpBytes + pump_bytes));
    transmit(static_cast<std::uint16_t>(kBuffers + index), frame, kPayload + pump_bytes);
    add(header().network.requests, 1);
}

void pump(bool quiet) {
    if (!quiet && !host_known) ask_for_host();
    std::uint64_t waiting = 0;
    for (std::uint16_t i = 0; i < kNetworkLanes; ++i) {
        if (!quiet && host_known && !lanes[i].with_device && !lanes[i].waits) request(i);
        waiting += lanes[i].waits ? 1 : 0;
    }
    write_field(header().network.in_flight, quiet ? waiting : kNetworkLanes);
}

void take_answer(const unsigned char* frame) {
    const std::uint16_t index = get16(frame + kPayload - 2);
    const std::uint64_t number = get_word(frame + kPayload);
    if (index >= kNetworkLanes || !lanes[index].waits || lanes[index].number != number)
        return report_error(ErrorCode::kNetworkMismatch, number, ~std::uint64_t{0});
    for (std::uint64_t i = 1; i < pump_bytes / 8; ++i)
        if (const std::uint64_t found = get_word(frame + kPayload + 8 * i); found != word_of(number, i))
            return report_error(ErrorCode::kNetworkMismatch, number, found);
    lanes[index].waits = false;
    if (number < newest_answer) add(header().network.reordered, 1);
    if (number > newest_answer) newest_answer = number;
    add(header().network.answers, 1);
}

// --- What comes in ---

enum class Verdict { kDone, kSendBack, kDrop };

Verdict handle_arp(Bytes frame, std::uint64_t length) {
    const Bytes arp = frame + kPacket;
    if (length < kPacket + kArpBytes || get16(arp) != 1 || get16(arp + 2) != kTypeIp) return Verdict::kDrop;
    if (get32(arp + 24) != kNetworkGuest) return Verdict::kDrop;
    if (get16(arp + 6) == kArpReply && get32(arp + 14) == kNetworkHost) {
        copy_mac(host_mac, arp + 8);
        host_known = true;
        return Verdict::kDone;
    }
    if (get16(arp + 6) != kArpRequest) return Verdict::kDrop;
    put16(arp + 6, kArpReply);
    copy_mac(arp + 18, arp + 8);
    put32(arp + 24, get32(arp + 14));
    copy_mac(arp + 8, own_mac);
    put32(arp + 14, kNetworkGuest);
    return Verdict::kSendBack;
}

// The checksum stays right when one of its words changes by -0x0800 (RFC 1624).
Verdict handle_icmp(Bytes frame, Bytes icmp, std::uint64_t length) {
    if (length < kIcmpBytes) return Verdict::kDrop;
    if (icmp[0] == kEchoReply && get16(icmp + 4) == kPumpId && icmp == frame + kPacket + kIpBytes &&
        length == kIcmpBytes + pump_bytes) {
        take_answer(frame);
        return Verdict::kDone;
    }
    if (icmp[0] != kEchoRequest) return Verdict::kDrop;
    icmp[0] = kEchoReply;
    const std::uint32_t sum = std::uint32_t{get16(icmp + 2)} + (kEchoRequest << 8);
    put16(icmp + 2, (sum & 0xffff) + (sum >> 16));
    add(header().network.echoes, 1);
    return Verdict::kSendBack;
}

Verdict handle_udp(Bytes udp, std::uint64_t length) {
    if (length < kUdpBytes || get16(udp + 2) != kNetworkEchoPort) return Verdict::kDrop;
    swap_bytes(udp, udp + 2, 2); // ports; the checksum does not care
    add(header().network.datagrams, 1);
    return Verdict::kSendBack;
}

// No fragments. `length` may include Ethernet's padding.
Verdict handle_ip(Bytes frame, std::uint64_t length) {
    const Bytes ip = frame + kPacket;
    if (length < kPacket + kIpBytes || ip[0] >> 4 != 4) return Verdict::kDrop;
    const std::uint64_t header_bytes = 4 * (ip[0] & 15);
    const std::uint64_t total = get16(ip + 2);
    if (header_bytes < kIpBytes || total < header_bytes || total > length - kPacket) return Verdict::kDrop;
    if (get32(ip + 16) != kNetworkGuest || (get16(ip + 6) & 0x3fff) != 0) return Verdict::kDrop;
    Verdict verdict = Verdict::kDrop;
    if (ip[9] == kIcmp) verdict = handle_icmp(frame, ip + header_bytes, total - header_bytes);
    if (ip[9] == kUdp) verdict = handle_udp(ip + header_bytes, total - header_bytes);
    if (verdict == Verdict::kSendBack) swap_bytes(ip + 12, ip + 16, 4);
    return verdict;
}

Verdict handle(Bytes frame, std::uint64_t length) {
    add(header().network.received, 1);
    if (length < kPacket || length > kBufferBytes) return Verdict::kDrop;
    const std::uint16_t type = get16(frame + kEthernet + 12);
    if (type == kTypeArp) return handle_arp(frame, length);
    return type == kTypeIp ? handle_ip(frame, length) : Verdict::kDrop;
}

void take_received() {
    std::uint32_t id = 0, length = 0;
    while (queues[kReceive].take(id, length)) {
        if (id >= kBuffers || place_of[id] != kReceive) {
            report_error(ErrorCode::kNetworkDoubled, kReceive, id);
            continue;
        }
        const auto buffer = static_cast<std::uint16_t>(id);
        const Bytes frame = buffers[buffer];
        const Verdict verdict = handle(frame, length);
        if (verdict == Verdict::kDrop) add(header().network.dropped, 1);
        if (verdict != Verdict::kSendBack) {
            receive_into(buffer);
            continue;
        }
        copy_mac(frame + kEthernet, frame + kEthernet + kMacBytes);
        copy_mac(frame + kEthernet + kMacBytes, own_mac);
        place_of[buffer] = kTransmit;
        transmit(buffer, frame, length);
    }
}

void take_sent() {
    std::uint32_t id = 0, length = 0;
    while (queues[kTransmit].take(id, length)) {
        if (id < kBuffers && place_of[id] == kTransmit)
            receive_into(static_cast<std::uint16_t>(id));
        else if (id >= kBuffers && id < kQueueSize && lanes[id - kBuffers].with_device)
            lanes[id - kBuffers].with_device = false;
        else
            report_error(ErrorCode::kNetworkDoubled, kTransmit, id);
    }
}

} // namespace

void set_up() {
    pump_bytes = option_number("bytes", 64);
    if (pump_bytes < 8 || pump_bytes > kMostPayload) {
        report_error(ErrorCode::kBadOption, pump_bytes, kMostPayload);
        pump_bytes = 64;
    }
    pump_bytes &= ~std::uint64_t{7};
    put(header().network.up, bring_up() ? 1 : 0);
    if (header().network.up == 0)
        return report_error(ErrorCode::kDeviceMissing, card.address(), card.status());
    for (std::uint16_t i = 0; i < kBuffers; ++i)
        receive_into(i);
    kick();
}

void run(VcpuSlot& slot) {
    const bool pumps = option_number("pump", 0) != 0;
    for (;;) {
        put(slot.now_tsc, read_tsc());
        add(slot.counter, 1);
        if (slot.index == 0) obey_stop();
        if (slot.index != 0 || header().network.up == 0) {
            pause();
            continue;
        }
        take_sent();
        take_received();
        if (pumps) pump(read_field(header().go) != 0);
        kick();
        pause();
    }
}

} // namespace tests::guests
