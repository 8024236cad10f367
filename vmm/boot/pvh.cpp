#include "vmm/boot/pvh.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "vmm/boot/elf.hpp"

namespace liveupdate::vmm {
namespace {

constexpr uint64_t kLowRamEnd = 0x9FC00;
constexpr uint64_t kHighRamStart = 0x100000;

// xen/include/public/arch-x86/hvm/start_info.h; little-endian, without padding.
constexpr uint32_t kStartMagic = 0x336EC578;

struct StartInfo {
    uint32_t magic = kStartMagic;
    uint32_t version = 1;
    uint32_t flags = 0;
    uint32_t module_count = 0;
    uint64_t module_list = 0;
    uint64_t command_line = kPvhCommandLine;
    uint64_t rsdp = 0;
    uint64_t memory_map = kPvhMemoryMap;
    uint32_t memory_map_entries = 0;
    uint32_t reserved = 0;
};
static_assert(sizeof(StartInfo) == 56);
static_assert(kPvhStartInfo + sizeof(StartInfo) <= kPvhModuleList);

struct ModuleEntry {
    uint64_t address = 0;
    uint64_t size = 0;
    uint64_t command_line = 0;
    uint64_t reserved = 0;
};
static_assert(sizeof(ModuleEntry) == 32);

struct WireMapEntry {
    uint64_t address;
    uint64_t size;
    uint32_t type;
    uint32_t reserved = 0;
};
static_assert(sizeof(WireMapEntry) == 24);
constexpr size_t kMaxMapEntries = (kPvhCommandLine - kPvhMemoryMap) / sizeof(WireMapEntry);

template <typename T>
Result<void> put(const GuestMemory& memory, uint64_t gpa, const T& value) {
    return memory.write(gpa, {reinterpret_cast<const uint8_t*>(&value), sizeof value});
}

Error invalid(std::string why) {
    return {ErrorCode::kInvalid, std::move(why)};
}

void add_entry(std::vector<MapEntry>& map, uint64_t start, uint64_t end, uint32_t type) {
    if (start < end) map.push_back({start, end - start, type});
}

Result<void> check_low_memory(const GuestMemory& memory) {
    const auto regions = memory.regions();
    if (!regions.empty() && regions[0].gpa == 0 && regions[0].size > kHighRamStart) return {};
    return invalid("the first RAM block must have more than 1 MiB to boot a kernel");
}

Result<void> write_command_line(const GuestMemory& memory, std::string_view text) {
    if (text.size() > kPvhMaxCommandLine)
        return invalid("the kernel's command line has " + std::to_string(text.size()) + " bytes, at most " +
                       std::to_string(kPvhMaxCommandLine) + " fit");
    if (text.find('\0') != std::string_view::npos)
        return invalid("the kernel's command line has a zero byte in it");
    std::vector<uint8_t> bytes(text.begin(), text.end());
    bytes.push_back(0);
    return memory.write(kPvhCommandLine, bytes);
}

Result<uint32_t> write_memory_map(const GuestMemory& memory) {
    const auto map = pvh_memory_map(memory.regions());
    if (map.size() > kMaxMapEntries) return invalid("RAM has too many regions for the boot memory map");
    uint64_t at = kPvhMemoryMap;
    for (const MapEntry& entry : map) {
        TRY(put(memory, at, WireMapEntry{entry.address, entry.size, entry.type}));
        at += sizeof(WireMapEntry);
    }
    return static_cast<uint32_t>(map.size());
}

// The address at which the initrd goes: as high as it can, out of the way of a kernel that grows upwards.
Result<uint64_t> place_initrd(const GuestMemory& memory, const ElfKernel& kernel, uint64_t size) {
    const uint64_t top = memory.regions()[0].size;
    if (size > top - kHighRamStart)
        return invalid(
            "the initrd has " + std::to_string(size) + " bytes, the first RAM region " + std::to_string(top));
    const uint64_t start = (top - size) / kPageSize * kPageSize;
    if (start < kHighRamStart) return invalid("the initrd leaves no RAM for a kernel");
    for (const ElfSegment& segment : kernel.segments)
        if (segment.gpa < top && start < segment.gpa + segment.size)
            return invalid("the initrd at " + describe_range(start, size) +
                           " would overlap the kernel's segment at " +
                           describe_range(segment.gpa, segment.size) + "; the guest needs more RAM");
    return start;
}

Result<ModuleEntry> write_initrd(
    const GuestMemory& memory, const ElfKernel& kernel, std::span<const uint8_t> initrd) {
    ModuleEntry module;
    TRY_ASSIGN(module.address, place_initrd(memory, kernel, initrd.size()));
    module.size = initrd.size();
    TRY(memory.write(module.address, initrd));
    TRY(put(memory, kPvhModuleList, module));
    return module;
}

} // namespace

std::vector<MapEntry> pvh_memory_map(std::span<const MemoryRegion> regions) {
    std::vector<MapEntry> map;
    for (const MemoryRegion& region : regions) {
        const uint64_t end = region.gpa + region.size;
        add_entry(map, region.gpa, std::min(end, kLowRamEnd), kMapRam);
        add_entry(map, std::max(region.gpa, kLowRamEnd), std::min(end, kHighRamStart), kMapReserved);
        add_entry(map, std::max(region.gpa, kHighRamStart), end, kMapRam);
    }
    const auto above = std::find_if(
        map.begin(), map.end(), [](const MapEntry& entry) { return entry.address >= kPciHoleEnd; });
    map.insert(above, {kPciHoleStart, kPciHoleEnd - kPciHoleStart, kMapReserved});
    return map;
}

InitialState pvh_initial_state(uint32_t entry) {
    constexpr uint64_t kProtectionEnable = 0x1;
    constexpr uint64_t kExtensionType = 0x10; // hard-wired to 1 in every CPU of today
    constexpr uint8_t kCodeReadAccessed = 0xB;
    constexpr uint8_t kDataWriteAccessed = 0x3;
    constexpr uint8_t kBusyTss32 = 0xB;

    SegmentState flat;
    flat.limit = 0xFFFFFFFF;
    flat.default_32 = flat.page_granular = true;

    InitialState state;
    state.rip = entry;
    state.rbx = kPvhStartInfo;
    state.cr0 = kProtectionEnable | kExtensionType;
    // The selectors are the guest's first use of a table it has not set up; any non-null value will do.
    state.cs = flat;
    state.cs.selector = 0x08;
    state.cs.type = kCodeReadAccessed;
    state.data = flat;
    state.data.selector = 0x10;
    state.data.type = kDataWriteAccessed;
    state.tr = {.limit = 0x67, .selector = 0x18, .type = kBusyTss32, .code_or_data = false};
    state.ldt = {.present = false};
    state.gdt.limit = state.idt.limit = 0;
    return state;
}

Result<InitialState> load_pvh(const GuestMemory& memory, int kernel_fd, std::string_view command_line,
    std::span<const uint8_t> initrd) {
    TRY(check_low_memory(memory));
    TRY_ASSIGN(const ElfKernel kernel, read_elf_kernel(kernel_fd).context("kernel"));
    TRY(load_elf_kernel(kernel_fd, kernel, memory, kPvhStartInfo, kPvhStructuresEnd - kPvhStartInfo)
            .context("kernel"));
    StartInfo info;
    TRY(write_command_line(memory, command_line));
    TRY_ASSIGN(info.memory_map_entries, write_memory_map(memory));
    if (!initrd.empty()) {
        TRY(write_initrd(memory, kernel, initrd));
        info.module_list = kPvhModuleList;
        info.module_count = 1;
    }
    TRY(put(memory, kPvhStartInfo, info));
    return pvh_initial_state(kernel.pvh_entry);
}

} // namespace liveupdate::vmm
