// Pattern guest: every slot of RAM holds a value made of its address and the pass that wrote it;
// each pass verifies the former one's values and writes its own. vCPUs share RAM evenly and run
// their passes independently of each other.
//
// Options: stride or touch (8 bytes; 4096 for one word per page), limit_mb (all RAM), seed (1),
// step (0; 1: pass n starts when the report's `go` is at least n), pause_us (0, between passes).
#include "tests/guests/runtime/cpu.hpp"
#include "tests/guests/runtime/guest.hpp"
#include "tests/guests/runtime/memory.hpp"
#include "tests/guests/runtime/options.hpp"
#include "tests/guests/runtime/status.hpp"

namespace tests::guests {

const GuestKind kGuestKind = GuestKind::kPattern;

namespace {

constexpr std::uint64_t kSmallPage = 4096;
constexpr std::uint64_t kChunkBytes = 1 << 20; // between two looks at the host's words

void append_range(std::uint64_t begin, std::uint64_t end, std::uint64_t& room) {
    ReportHeader& head = header();
    begin = (begin + kSmallPage - 1) & ~(kSmallPage - 1);
    end &= ~(kSmallPage - 1);
    if (end <= begin || room == 0 || head.pattern_ranges == kMaxRanges) return;
    if (end - begin > room) end = begin + room;
    room -= end - begin;
    Range& range = head.ranges[head.pattern_ranges];
    put(range.begin_gpa, begin);
    put(range.end_gpa, end);
    add(head.pattern_bytes, end - begin);
    add(head.pattern_ranges, 1);
}

/// Cuts the low megabyte, the report and the image out of one range of RAM. They lie in this
/// order, one above the other.
void append_without_excluded(MemoryRange ram, std::uint64_t& room) {
    const MemoryRange holes[] = {
        {0, 1 << 20}, {kReportGpa, kReportGpa + kReportBytes}, {kReportGpa + kReportBytes, image_limit()}};
    for (const MemoryRange& hole : holes) {
        if (hole.end <= ram.begin || hole.begin >= ram.end) continue;
        append_range(ram.begin, hole.begin, room);
        ram.begin = hole.end;
    }
    append_range(ram.begin, ram.end, room);
}

/// Set once before the vCPUs start: with `verify=0` a pass only writes, as a guest that fills fresh memory.
bool verifies = true;

/// Verifies and writes the slots in [begin, end); `pass` is the number being written, from 1.
void visit(PatternSlot& out, std::uint64_t begin, std::uint64_t end, std::uint64_t pass) {
    const std::uint64_t stride = header().pattern_stride;
    const std::uint64_t seed = header().pattern_seed;
    const bool verify = verifies;
    std::uint64_t slots = 0;
    for (std::uint64_t gpa = begin; gpa < end; gpa += stride, ++slots) {
        auto* slot = reinterpret_cast<std::uint64_t*>(gpa);
        if (pass > 1 && verify) {
            const std::uint64_t expected = pattern_value(gpa, pass - 1, seed);
            const std::uint64_t found = __atomic_load_n(slot, __ATOMIC_RELAXED);
            if (found != expected) [[unlikely]] {
                if (out.mismatches == 0) {
                    put(out.first_mismatch_gpa, gpa);
                    put(out.first_mismatch_expected, expected);
                    put(out.first_mismatch_found, found);
                }
                write_field(out.mismatches, out.mismatches + 1);
                report_error(ErrorCode::kPatternMismatch, gpa, found);
            }
        }
        put(*slot, pattern_value(gpa, pass, seed));
    }
    add(out.slots_written, slots);
    if (pass > 1 && verify) add(out.slots_verified, slots);
}

void heartbeat(VcpuSlot& slot) {
    put(slot.now_tsc, read_tsc());
    add(slot.counter, 1);
    if (slot.index == 0) obey_stop();
}

/// This vCPU's share of all ranges, as slot numbers counted over all of them.
void run_pass(VcpuSlot& slot, std::uint64_t pass) {
    const ReportHeader& head = header();
    const std::uint64_t stride = head.pattern_stride;
    std::uint64_t first = 0; // number of the range's first slot
    for (std::size_t i = 0; i < head.pattern_ranges; ++i) {
        const Range& range = head.ranges[i];
        const std::uint64_t count = (range.end_gpa - range.begin_gpa) / stride;
        const std::uint64_t from = slot.pattern.begin_slot > first ? slot.pattern.begin_slot : first;
        const std::uint64_t to =
            slot.pattern.end_slot < first + count ? slot.pattern.end_slot : first + count;
        std::uint64_t gpa = range.begin_gpa + (from - first) * stride;
        for (std::uint64_t left = to > from ? (to - from) * stride : 0; left != 0;) {
            const std::uint64_t bytes = left < kChunkBytes ? left : kChunkBytes;
            visit(slot.pattern, gpa, gpa + bytes, pass);
            gpa += bytes;
            left -= bytes;
            heartbeat(slot);
        }
        first += count;
    }
}

std::uint64_t count_slots() {
    std::uint64_t slots = 0;
    for (std::size_t i = 0; i < header().pattern_ranges; ++i) {
        const Range& range = header().ranges[i];
        slots += (range.end_gpa - range.begin_gpa) / header().pattern_stride;
    }
    return slots;
}

void record_pass(VcpuSlot& slot, std::uint64_t pass) {
    PassRecord& record = report().passes[slot.index][(pass - 1) % kPassRecords];
    put(record.end_tsc, 0);
    put(record.start_tsc, read_tsc());
    put(slot.pattern.running, 1);
    run_pass(slot, pass);
    put(record.end_tsc, read_tsc());
    put(slot.pattern.running, 0);
    const std::uint64_t took = record.end_tsc - record.start_tsc;
    if (took > slot.pattern.pass_max_ticks) put(slot.pattern.pass_max_ticks, took);
    write_field(slot.pattern.passes, pass);
}

void wait_until(VcpuSlot& slot, std::uint64_t tsc) {
    while (read_tsc() < tsc) {
        heartbeat(slot);
        pause();
    }
}

} // namespace

void set_up() {
    ReportHeader& head = header();
    // A power of two from 8 to a page, so that ranges hold a whole number of slots.
    const std::uint64_t stride = option_number("touch", option_number("stride", 8));
    const bool usable = stride >= 8 && stride <= kSmallPage && (stride & (stride - 1)) == 0;
    if (!usable) report_error(ErrorCode::kBadOption, stride, kSmallPage);
    put(head.pattern_stride, usable ? stride : 8);
    put(head.pattern_seed, option_number("seed", 1));
    verifies = option_number("verify", 1) != 0;
    std::uint64_t room = option_number("limit_mb", ~std::uint64_t{0} >> 20) << 20;
    std::size_t count = 0;
    const MemoryRange* ram = ram_ranges(count);
    for (std::size_t i = 0; i < count; ++i)
        append_without_excluded(ram[i], room);
    const std::uint64_t slots = count_slots();
    for (std::size_t i = 0; i < head.vcpus; ++i) {
        put(report().vcpus[i].pattern.begin_slot, slots * i / head.vcpus);
        put(report().vcpus[i].pattern.end_slot, slots * (i + 1) / head.vcpus);
    }
}

void run(VcpuSlot& slot) {
    const bool steps = option_number("step", 0) != 0;
    const std::uint64_t rest = ticks_of_us(option_number("pause_us", 0));
    for (std::uint64_t pass = 1;; ++pass) {
        while (steps && read_field(header().go) < pass) {
            heartbeat(slot);
            pause();
        }
        record_pass(slot, pass);
        if (rest != 0) wait_until(slot, read_tsc() + rest);
    }
}

} // namespace tests::guests
