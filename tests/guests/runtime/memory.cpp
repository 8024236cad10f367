#include "tests/guests/runtime/memory.hpp"

#include "tests/guests/runtime/cpu.hpp"
#include "tests/guests/runtime/options.hpp"
#include "tests/guests/runtime/status.hpp"

extern "C" {
extern std::uint64_t start_info_gpa;
extern std::uint64_t boot_pml4[512];
extern std::uint64_t boot_pdpt[512];
extern char image_end[];
}

namespace tests::guests {

namespace {

/// Xen's public/arch-x86/hvm/start_info.h, version 1.
struct StartInfo {
    std::uint32_t magic;
    std::uint32_t version;
    std::uint32_t flags;
    std::uint32_t modules;
    std::uint64_t modules_gpa;
    std::uint64_t command_line_gpa;
    std::uint64_t rsdp_gpa;
    std::uint64_t memory_map_gpa;
    std::uint32_t memory_map_entries;
    std::uint32_t reserved;
};

struct MemoryMapEntry {
    std::uint64_t gpa;
    std::uint64_t bytes;
    std::uint32_t type;
    std::uint32_t reserved;
};

constexpr std::uint32_t kStartInfoMagic = 0x336ec578;
constexpr std::uint32_t kTypeRam = 1;
constexpr std::uint64_t kTableFlags = 0x27;     // present, writable, user, accessed
constexpr std::uint64_t kPageFlags = 0x67;      // and dirty
constexpr std::uint64_t kLargePageFlags = 0xe7; // and large
constexpr std::uint64_t kLargeBit = 0x80;
constexpr std::uint64_t kAddressMask = 0x000ffffffffff000;
constexpr std::uint64_t kSmallPage = 4096;
constexpr std::uint64_t kLargePage = 2 << 20;
constexpr std::uint64_t kGigabyte = 1 << 30;
constexpr std::uint64_t kMappable = 512 * kGigabyte; // one page-directory-pointer table
constexpr std::size_t kMaxRamRanges = 32;

MemoryRange ram[kMaxRamRanges];
std::size_t ram_count;
std::uint64_t next_table;

std::uint64_t* new_table() {
    auto* table = reinterpret_cast<std::uint64_t*>(next_table);
    next_table += kSmallPage;
    for (std::size_t i = 0; i < 512; ++i)
        table[i] = 0;
    return table;
}

std::uint64_t* table_at(std::uint64_t entry) {
    return reinterpret_cast<std::uint64_t*>(entry & kAddressMask);
}

/// The page-directory entry for an address, whose directory is made if missing.
std::uint64_t& directory_entry(std::uint64_t gpa) {
    std::uint64_t& pointer = boot_pdpt[gpa / kGigabyte];
    if (pointer == 0) pointer = reinterpret_cast<std::uint64_t>(new_table()) | kTableFlags;
    return table_at(pointer)[gpa / kLargePage % 512];
}

void map_large(std::uint64_t gpa) {
    std::uint64_t& entry = directory_entry(gpa);
    if (entry == 0) entry = (gpa & ~(kLargePage - 1)) | kLargePageFlags;
}

/// Same translation as before, in 512 pieces.
void split(std::uint64_t gpa) {
    std::uint64_t& entry = directory_entry(gpa);
    if ((entry & kLargeBit) == 0) return;
    std::uint64_t* table = new_table();
    const std::uint64_t base = gpa & ~(kLargePage - 1);
    for (std::size_t i = 0; i < 512; ++i)
        table[i] = (base + i * kSmallPage) | kPageFlags;
    entry = reinterpret_cast<std::uint64_t>(table) | kTableFlags;
}

} // namespace

void read_start_info() {
    next_table = reinterpret_cast<std::uint64_t>(image_end);
    const auto& info = *reinterpret_cast<const StartInfo*>(start_info_gpa);
    if (info.magic != kStartInfoMagic) {
        report_error(ErrorCode::kBadStartInfo, start_info_gpa, info.magic);
        return;
    }
    if (info.command_line_gpa != 0) {
        keep_command_line(reinterpret_cast<const char*>(info.command_line_gpa));
    }
    if (info.version == 0 || info.memory_map_entries == 0) {
        report_error(ErrorCode::kBadStartInfo, start_info_gpa, info.memory_map_entries);
        return;
    }
    const auto* map = reinterpret_cast<const MemoryMapEntry*>(info.memory_map_gpa);
    for (std::uint32_t i = 0; i < info.memory_map_entries && ram_count < kMaxRamRanges; ++i) {
        if (map[i].type != kTypeRam || map[i].gpa + map[i].bytes > kMappable) continue;
        ram[ram_count++] = {map[i].gpa, map[i].gpa + map[i].bytes};
    }
}

const MemoryRange* ram_ranges(std::size_t& count) {
    count = ram_count;
    return ram;
}

void map_all_ram(bool small_pages) {
    for (std::size_t i = 0; i < ram_count; ++i) {
        for (std::uint64_t gpa = ram[i].begin & ~(kLargePage - 1); gpa < ram[i].end; gpa += kLargePage) {
            map_large(gpa);
            if (small_pages) split(gpa);
        }
    }
    // The same root again: its load drops the large translations.
    if (small_pages) {
        call_ring0(RING0_SET_CR3, reinterpret_cast<std::uint64_t>(boot_pml4), 0);
    }
}

void map_page(std::uint64_t gpa) {
    map_large(gpa);
}

std::uint64_t image_limit() {
    return next_table;
}

} // namespace tests::guests
