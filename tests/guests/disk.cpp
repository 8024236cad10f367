// Disk guest: vCPU 0 drives the first block device, and keeps kDiskLanes requests in flight at every moment,
// by polling. Each lane has blocks of its own on the disk, which it writes, reads again and
// compares with what it wrote last. Other vCPUs do nothing.
//
// A request that comes back twice, or that nobody asked for, is an error, and so is one that never does: the
// host sees it in `in_flight` after it has asked for quiet.
//
// Options: seed (1), flush (64: one request in so many is a flush; 0: none), and those of virtio.hpp.
#include "tests/guests/runtime/cpu.hpp"
#include "tests/guests/runtime/guest.hpp"
#include "tests/guests/runtime/options.hpp"
#include "tests/guests/runtime/status.hpp"
#include "tests/guests/runtime/virtio.hpp"

namespace tests::guests {

const GuestKind kGuestKind = GuestKind::kDisk;

namespace {

constexpr std::uint32_t kDiskType = 2;
constexpr std::uint32_t kFeatureFlush = 1 << 9;
constexpr std::uint16_t kQueueSize = 128;
constexpr std::uint16_t kPartsPerRequest = 3;
constexpr std::uint8_t kNoStatus = 0xff;
constexpr std::uint32_t kRead = 0;
constexpr std::uint32_t kWrite = 1;
constexpr std::uint32_t kFlush = 4;

struct RequestHeader {
    std::uint32_t type;
    std::uint32_t reserved;
    std::uint64_t sector;
};
struct Lane {
    bool busy;
    std::uint32_t type;
    std::uint64_t block;
    std::uint64_t generation; // being written
    std::uint64_t next_generation;
    RequestHeader header;
    volatile std::uint8_t status;
};

VirtQueue<kQueueSize> queue;
alignas(4096) std::uint64_t buffers[kDiskLanes][kDiskBlockBytes / 8];
Lane lanes[kDiskLanes];
VirtioDevice disk;
std::uint64_t random_state;

std::uint64_t random() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

bool bring_up() {
    if (!disk.find(kDiskType) || !disk.agree(kFeatureFlush)) return false;
    disk.set_queue(0, queue);
    return disk.go();
}

std::uint64_t word_of(std::uint64_t lane, std::uint64_t block, std::uint64_t generation, std::uint64_t i) {
    return disk_word(lane, block, generation, i, header().disk.seed);
}

void submit(std::uint64_t index, std::uint32_t type, std::uint64_t block) {
    Lane& lane = lanes[index];
    lane.busy = true;
    lane.type = type;
    lane.block = block;
    lane.header = {type, 0, type == kFlush ? 0 : (index * kDiskBlocks + block) * (kDiskBlockBytes / 512)};
    lane.status = kNoStatus;
    std::uint64_t* words = buffers[index];
    if (type == kWrite) lane.generation = ++lane.next_generation;
    for (std::uint64_t i = 0; i < kDiskBlockBytes / 8; ++i)
        words[i] = type == kWrite ? word_of(index, block, lane.generation, i) : ~std::uint64_t{0};
    const auto head = static_cast<std::uint16_t>(index * kPartsPerRequest);
    const auto data_flags = static_cast<std::uint16_t>(kNext | (type == kRead ? kDeviceWrites : 0));
    const auto second = static_cast<std::uint16_t>(type == kFlush ? head + 2 : head + 1);
    queue.descriptors[head] = {gpa_of(&lane.header), sizeof(RequestHeader), kNext, second};
    queue.descriptors[head + 1] = {
        gpa_of(words), kDiskBlockBytes, data_flags, static_cast<std::uint16_t>(head + 2)};
    queue.descriptors[head + 2] = {gpa_of(&lane.status), 1, kDeviceWrites, 0};
    queue.offer(head);
    add(header().disk.submitted, 1);
}

void verify(std::uint64_t index, const Lane& lane) {
    const std::uint64_t generation = header().disk.generations[index][lane.block];
    for (std::uint64_t i = 0; i < kDiskBlockBytes / 8; ++i) {
        const std::uint64_t expected = word_of(index, lane.block, generation, i);
        if (buffers[index][i] == expected) continue;
        report_error(ErrorCode::kDiskMismatch, (index * kDiskBlocks + lane.block) * kDiskBlockBytes + 8 * i,
            buffers[index][i]);
        return;
    }
    add(header().disk.reads, 1);
}

void complete(std::uint32_t id) {
    const std::uint64_t index = id / kPartsPerRequest;
    if (id % kPartsPerRequest != 0 || index >= kDiskLanes || !lanes[index].busy)
        return report_error(ErrorCode::kDiskDoubled, id, header().disk.completed);
    Lane& lane = lanes[index];
    lane.busy = false;
    add(header().disk.completed, 1);
    if (lane.status != 0) return report_error(ErrorCode::kDiskFailed, index, lane.status);
    if (lane.type == kWrite) {
        put(header().disk.generations[index][lane.block], lane.generation);
        add(header().disk.writes, 1);
    } else if (lane.type == kRead) {
        verify(index, lane);
    } else {
        add(header().disk.flushes, 1);
    }
}

/// Gives every idle lane something to do; what kind, chance decides.
void feed(std::uint64_t flush_every) {
    bool fed = false;
    for (std::uint64_t i = 0; i < kDiskLanes; ++i) {
        if (lanes[i].busy) continue;
        const bool flush = flush_every != 0 && random() % flush_every == 0;
        const std::uint64_t chance = random();
        submit(i, flush ? kFlush : chance % 2 == 0 ? kRead : kWrite, chance / 2 % kDiskBlocks);
        fed = true;
    }
    if (fed && queue.wants_kick()) disk.kick(0);
}

std::uint64_t busy_lanes() {
    std::uint64_t busy = 0;
    for (const Lane& lane : lanes)
        busy += lane.busy ? 1 : 0;
    return busy;
}

} // namespace

void set_up() {
    random_state = 0x9e3779b97f4a7c15 * option_number("seed", 1);
    put(header().disk.seed, option_number("seed", 1));
    put(header().disk.up, bring_up() ? 1 : 0);
    if (header().disk.up == 0) report_error(ErrorCode::kDeviceMissing, disk.address(), disk.status());
}

void run(VcpuSlot& slot) {
    const std::uint64_t flush_every = option_number("flush", 64);
    for (;;) {
        put(slot.now_tsc, read_tsc());
        add(slot.counter, 1);
        if (slot.index != 0 || header().disk.up == 0) {
            pause();
            if (slot.index == 0) obey_stop();
            continue;
        }
        obey_stop();
        // The host asks for quiet with `go`: lanes run empty, then the disk's content can be judged.
        const bool quiet = read_field(header().go) != 0;
        if (!quiet) feed(flush_every);
        std::uint32_t head = 0, length = 0;
        while (queue.take(head, length))
            complete(head);
        write_field(header().disk.in_flight, quiet ? busy_lanes() : kDiskLanes);
        pause();
    }
}

} // namespace tests::guests
