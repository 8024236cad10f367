// Hostile guest: vCPU 0 goes round the virtio devices it finds and attacks each in every way that the
// registers and the rings allow: broken, looping and nested descriptors, rings that overlap the end of RAM,
// sizes that cannot be, kicks for nothing, resets in mid-request. Chance decides, from a seed.
//
// Everything that a device may write lies in the arena. Guards lie around it and at the end of RAM, and some
// descriptors and rings reach from there beyond: a guard that changes is an error, and so is a buffer that a
// device writes after it was reset.
//
// Options: seed (1); kinds (all), a bit for each kind of attack.
#include "tests/guests/runtime/cpu.hpp"
#include "tests/guests/runtime/guest.hpp"
#include "tests/guests/runtime/memory.hpp"
#include "tests/guests/runtime/options.hpp"
#include "tests/guests/runtime/status.hpp"
#include "tests/guests/runtime/virtio.hpp"

namespace tests::guests {

const GuestKind kGuestKind = GuestKind::kHostile;

namespace {

constexpr std::uint64_t kMmio = 0xd0000000;
constexpr std::uint64_t kStride = 0x1000;
constexpr std::uint64_t kSlots = 14;
constexpr std::uint64_t kArenaBytes = 128 << 10;
constexpr std::uint64_t kGuardBytes = 16 << 10;
constexpr std::uint64_t kRingBytes = 32 << 10; // descriptors, available and used ring at the arena's front
constexpr std::uint64_t kSettledLooks = 50;    // at a buffer that nobody may write any more

using Descriptor = VirtDescriptor;

struct Area {
    std::uint64_t before[kGuardBytes / 8];
    unsigned char arena[kArenaBytes];
    std::uint64_t after[kGuardBytes / 8];
};
alignas(4096) Area area;

std::uint64_t random_state;
std::uint64_t ram_end; // of the last range
std::uint64_t devices[kSlots];
std::uint64_t device_count;
std::uint64_t device;         // address of the one that is attacked
std::uint16_t queue_size = 1; // as the rings are laid out now
std::uint16_t available_index;

std::uint64_t random() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}
std::uint64_t below(std::uint64_t limit) {
    return random() % limit;
}

volatile std::uint32_t& reg(std::uint64_t offset) {
    return *reinterpret_cast<volatile std::uint32_t*>(device + offset);
}
void set64(std::uint64_t offset, std::uint64_t value) {
    reg(offset) = static_cast<std::uint32_t>(value);
    reg(offset + 4) = static_cast<std::uint32_t>(value >> 32);
}

std::uint64_t arena() {
    return reinterpret_cast<std::uint64_t>(area.arena);
}
std::uint64_t available_gpa() {
    return arena() + 16 * std::uint64_t{1024};
}
std::uint64_t used_gpa() {
    return arena() + 20 * std::uint64_t{1024};
}
std::uint64_t* tail_guard() {
    return reinterpret_cast<std::uint64_t*>(ram_end - kGuardBytes);
}
volatile std::uint16_t& word_at(std::uint64_t gpa) {
    return *reinterpret_cast<volatile std::uint16_t*>(gpa);
}
Descriptor& descriptor(std::uint64_t index) {
    return reinterpret_cast<Descriptor*>(arena())[index];
}

std::uint64_t guard_word(std::uint64_t gpa) {
    return pattern_value(gpa, 1, header().hostile.seed);
}
void fill_guard(std::uint64_t* words) {
    for (std::uint64_t i = 0; i < kGuardBytes / 8; ++i)
        words[i] = guard_word(reinterpret_cast<std::uint64_t>(words + i));
}
void check_guard(const std::uint64_t* words) {
    for (std::uint64_t i = 0; i < kGuardBytes / 8; ++i) {
        const auto at = reinterpret_cast<std::uint64_t>(words + i);
        const std::uint64_t found = __atomic_load_n(words + i, __ATOMIC_RELAXED);
        if (found == guard_word(at)) continue;
        report_error(ErrorCode::kGuardBroken, at, found);
        return;
    }
}
void check_guards() {
    check_guard(area.before);
    check_guard(area.after);
    check_guard(tail_guard());
    add(header().hostile.guard_checks, 1);
}

// --- The driver's part, as it should be ---

// Complete when the status reads 0 (virtio 1.2, 2.4.2): until then the device may still write.
void reset() {
    reg(0x70) = 0;
    while (reg(0x70) != 0)
        pause();
    add(header().hostile.resets, 1);
}

// As far as the features: all that are offered.
void agree() {
    reset();
    reg(0x70) = 3;
    for (std::uint32_t half = 0; half < 2; ++half) {
        reg(0x14) = half;
        const std::uint32_t offered = reg(0x10);
        reg(0x24) = half;
        reg(0x20) = half == 0 && below(4) == 0 ? 0 : offered; // now and then without the rings' features
    }
    reg(0x70) = 11;
}

bool select(std::uint64_t queue) {
    reg(0x30) = static_cast<std::uint32_t>(queue);
    return reg(0x34) != 0;
}

void lay_out(std::uint64_t descriptors, std::uint64_t available, std::uint64_t used, std::uint32_t size) {
    reg(0x38) = size;
    set64(0x80, descriptors);
    set64(0x90, available);
    set64(0xa0, used);
    reg(0x44) = 1;
}

// One queue with its rings in the arena, of a size that the device takes.
void bring_up(std::uint64_t queue) {
    agree();
    for (std::uint64_t i = 0; i < kRingBytes / 8; ++i)
        reinterpret_cast<std::uint64_t*>(arena())[i] = 0;
    available_index = 0;
    if (!select(queue)) return;
    const std::uint32_t most = reg(0x34) < 256 ? reg(0x34) : 256;
    queue_size = static_cast<std::uint16_t>(std::uint32_t{1} << below(9));
    if (queue_size > most) queue_size = static_cast<std::uint16_t>(most);
    lay_out(arena(), available_gpa(), used_gpa(), queue_size);
    reg(0x70) = 15;
}

void offer(std::uint16_t head) {
    word_at(available_gpa() + 4 + 2 * (available_index % queue_size)) = head;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    word_at(available_gpa() + 2) = ++available_index;
}

void kick(std::uint64_t queue) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    reg(0x50) = static_cast<std::uint32_t>(queue);
}

// --- What is wrong with it ---

// A place that no device may touch, or that is not there at all.
std::uint64_t bad_address() {
    const std::uint64_t places[] = {ram_end - 8 * below(64), ram_end + below(1 << 20), kMmio + below(0x10000),
        0xfe000000, 0xfee00000, 0xfffffffffffff000 + below(0x1000), std::uint64_t{1} << 63,
        random() | 1ull << 40};
    return places[below(sizeof places / sizeof *places)];
}

// Of what this guest wrote as descriptors, since others might name its own memory: the queue's own table, one
// beside it, one that is not there, or one that does not end in RAM.
void aim_at_table(Descriptor& d) {
    d.length = static_cast<std::uint32_t>(16 * (1 + below(64)) + (below(8) == 0 ? 1 + below(15) : 0));
    switch (below(4)) {
    case 0:
        d.address = arena();
        break;
    case 1:
        d.address = arena() + 16 * below(64);
        break;
    case 2:
        d.address = arena() + kRingBytes + 16 * below(128);
        break;
    default:
        d.address = below(2) == 0 ? ram_end - 8 : arena();
        d.length = static_cast<std::uint32_t>(random() | 1u << 31) & ~15u;
    }
}

Descriptor bad_descriptor() {
    Descriptor d{};
    d.next = static_cast<std::uint16_t>(below(8) == 0 ? random() : below(queue_size));
    d.flags = static_cast<std::uint16_t>(below(8));
    if (below(16) == 0) d.flags = static_cast<std::uint16_t>(random());
    const std::uint64_t at = kRingBytes + below(kArenaBytes - kRingBytes);
    d.address = arena() + at;
    d.length = static_cast<std::uint32_t>(below(2) == 0 ? below(64) : below(kArenaBytes - at));
    if (below(5) == 0) {
        d.address = bad_address();
        d.length = static_cast<std::uint32_t>(random());
        // It must not lie wholly in RAM, where the device might rightly write.
        if (d.address < ram_end && d.length <= ram_end - d.address)
            d.length = static_cast<std::uint32_t>(ram_end - d.address + 1 + below(4096));
    }
    if ((d.flags & kIndirect) != 0) aim_at_table(d);
    return d;
}

void scribble_descriptors(std::uint64_t queue) {
    bring_up(queue);
    if (queue_size == 0) return;
    for (std::uint64_t i = 0; i < queue_size; ++i)
        descriptor(i) = bad_descriptor();
    // Indirect tables of the same making.
    for (std::uint64_t i = kRingBytes / 16; i < kRingBytes / 16 + 256; ++i)
        descriptor(i) = bad_descriptor();
    for (std::uint64_t n = 1 + below(8); n > 0; --n)
        offer(static_cast<std::uint16_t>(below(16) == 0 ? random() : below(queue_size)));
    if (below(4) == 0) word_at(available_gpa() + 2) = static_cast<std::uint16_t>(random());
    kick(queue);
}

void impossible_sizes(std::uint64_t queue) {
    agree();
    if (!select(queue)) return;
    const std::uint32_t sizes[] = {0, 32768, 65535, 65536, 3, 1025, 0xffffffff, 1};
    lay_out(arena(), available_gpa(), used_gpa(), sizes[below(8)]);
    reg(0x70) = 15;
    kick(queue);
}

void impossible_rings(std::uint64_t queue) {
    agree();
    if (!select(queue)) return;
    const std::uint32_t size = reg(0x34) < 64 ? reg(0x34) : 64;
    queue_size = static_cast<std::uint16_t>(size);
    const std::uint64_t bad = below(3);
    const std::uint64_t near_end = ram_end - 16 * (1 + below(3)); // 4 descriptors, or a ring of 64, go beyond
    std::uint64_t where = below(2) == 0 ? near_end : bad_address();
    if (where < ram_end && where < near_end) where = near_end;
    if (below(4) == 0) where = arena() + 1 + below(64); // not aligned, or over the others
    lay_out(
        bad == 0 ? where : arena(), bad == 1 ? where : available_gpa(), bad == 2 ? where : used_gpa(), size);
    reg(0x70) = 15;
    offer(0);
    kick(queue);
}

// All three rings at one place.
void rings_in_each_other(std::uint64_t queue) {
    bring_up(queue);
    agree();
    if (!select(queue)) return;
    lay_out(arena(), arena() + 4 * below(64), arena() + 4 * below(64), queue_size == 0 ? 1 : queue_size);
    reg(0x70) = 15;
    for (std::uint64_t i = 0; i < 64; ++i)
        reinterpret_cast<volatile std::uint32_t*>(arena())[i] = static_cast<std::uint32_t>(below(1 << 18));
    // Descriptors that point into low memory would be this guest's own fault: addresses are the arena's.
    for (std::uint64_t i = 0; i < queue_size; ++i) {
        descriptor(i).address = arena() + kRingBytes + below(1024);
        descriptor(i).length &= 0x7ff;
        descriptor(i).flags &= static_cast<std::uint16_t>(~kIndirect);
    }
    kick(queue);
}

void kicks_for_nothing(std::uint64_t queue) {
    bring_up(queue);
    for (std::uint64_t n = below(32); n > 0; --n)
        kick(below(4) == 0 ? random() : queue);
    reset();
    kick(queue);
}

// A chain that any device finds at least nearly right: 16 bytes to read, then room.
void valid_chain(std::uint64_t index, std::uint64_t buffer) {
    auto* const request = reinterpret_cast<std::uint32_t*>(buffer);
    request[0] = static_cast<std::uint32_t>(below(2) * 4 % 3); // blk: read or write
    request[1] = 0;
    request[2] = static_cast<std::uint32_t>(below(64));
    request[3] = 0;
    const auto next = [&](std::uint64_t i) { return static_cast<std::uint16_t>((index + i) % queue_size); };
    descriptor(next(0)) = {buffer, 16, kNext, next(1)};
    descriptor(next(1)) = {buffer + 64, 4096, kNext | kDeviceWrites, next(2)};
    descriptor(next(2)) = {buffer + 64 + 4096, 1, kDeviceWrites, 0};
    offer(next(0));
}

// After the reset the buffers are the driver's own again.
void reset_in_mid_request(std::uint64_t queue) {
    bring_up(queue);
    if (queue_size < 4) return;
    constexpr std::uint64_t kBuffer = 8 << 10;
    const std::uint64_t count = (kArenaBytes - kRingBytes) / kBuffer;
    for (std::uint64_t i = 0; i < count && 3 * i + 3 <= queue_size; ++i)
        valid_chain(3 * i, arena() + kRingBytes + i * kBuffer);
    kick(queue);
    for (std::uint64_t i = below(2000); i > 0; --i)
        pause();
    reset();
    auto* const words = reinterpret_cast<std::uint64_t*>(arena() + kRingBytes);
    const std::uint64_t mark = random();
    for (std::uint64_t i = 0; i < (kArenaBytes - kRingBytes) / 8; ++i)
        words[i] = mark;
    for (std::uint64_t look = 0; look < kSettledLooks; ++look)
        for (std::uint64_t i = 0; i < (kArenaBytes - kRingBytes) / 8; i += 8)
            if (__atomic_load_n(words + i, __ATOMIC_RELAXED) != mark)
                return report_error(
                    ErrorCode::kWrittenAfterReset, device, reinterpret_cast<std::uint64_t>(words + i));
}

void scribble_registers(std::uint64_t) {
    for (std::uint64_t n = 1 + below(40); n > 0; --n) {
        const std::uint64_t at = device + below(0x200);
        const std::uint64_t value = random();
        // Not the addresses of rings: a queue may go live over whatever is there.
        const std::uint64_t offset = at - device;
        if (offset >= 0x80 && offset < 0xb0) continue;
        switch (below(4)) {
        case 0:
            *reinterpret_cast<volatile std::uint8_t*>(at) = static_cast<std::uint8_t>(value);
            break;
        case 1:
            *reinterpret_cast<volatile std::uint16_t*>(at & ~1ull) = static_cast<std::uint16_t>(value);
            break;
        case 2:
            *reinterpret_cast<volatile std::uint32_t*>(at & ~3ull) = static_cast<std::uint32_t>(value);
            break;
        default:
            static_cast<void>(*reinterpret_cast<volatile std::uint64_t*>(at & ~7ull));
        }
    }
    reset();
}

void status_out_of_order(std::uint64_t queue) {
    reset();
    if (select(queue)) lay_out(arena(), available_gpa(), used_gpa(), 8);
    const std::uint32_t all[] = {4, 15, 8, 0x80, 0xff, 0x40, 11, 0};
    for (std::uint64_t n = below(8); n > 0; --n) {
        reg(0x24) = static_cast<std::uint32_t>(below(3));
        reg(0x20) = static_cast<std::uint32_t>(random());
        reg(0x70) = all[below(8)];
        kick(queue);
    }
}

using Attack = void (*)(std::uint64_t queue);
constexpr Attack kAttacks[kHostileKinds] = {scribble_descriptors, impossible_sizes, impossible_rings,
    rings_in_each_other, kicks_for_nothing, reset_in_mid_request, scribble_registers, status_out_of_order};

void find_devices() {
    for (std::uint64_t slot = 0; slot < kSlots; ++slot) {
        device = kMmio + slot * kStride;
        map_page(device);
        if (reg(0x00) != 0x74726976 || reg(0x08) == 0) continue;
        devices[device_count++] = device;
        put(header().hostile.device_ids, header().hostile.device_ids | std::uint64_t{1} << reg(0x08));
    }
}

} // namespace

void set_up() {
    random_state = 0x9e3779b97f4a7c15 * option_number("seed", 1);
    put(header().hostile.seed, option_number("seed", 1));
    std::size_t count = 0;
    const MemoryRange* const ranges = ram_ranges(count);
    for (std::size_t i = 0; i < count; ++i)
        if (ranges[i].end > ram_end && ranges[i].end <= 0xc0000000) ram_end = ranges[i].end;
    fill_guard(area.before);
    fill_guard(area.after);
    fill_guard(tail_guard());
    find_devices();
    put(header().hostile.devices, device_count);
    if (device_count == 0) report_error(ErrorCode::kDeviceMissing, kMmio, 0);
}

void run(VcpuSlot& slot) {
    const std::uint64_t kinds = option_number("kinds", ~std::uint64_t{0});
    for (;;) {
        put(slot.now_tsc, read_tsc());
        add(slot.counter, 1);
        if (slot.index == 0) obey_stop();
        if (slot.index != 0 || device_count == 0) {
            pause();
            continue;
        }
        device = devices[below(device_count)];
        const std::uint64_t kind = below(kHostileKinds);
        if ((kinds >> kind & 1) == 0) continue;
        kAttacks[kind](below(4));
        add(header().hostile.attacks[kind], 1);
        check_guards();
    }
}

} // namespace tests::guests
