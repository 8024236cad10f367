#include "vmm/boot/pvh.hpp"

#include "vmm/boot/e820.hpp"

namespace liveupdate::vmm {
namespace {

// xen/include/public/arch-x86/hvm/start_info.h; little-endian, without padding.
constexpr uint32_t kStartMagic = 0x336EC578;

struct StartInfo {
    uint32_t magic = kStartMagic;
    uint32_t version = 1;
    uint32_t flags = 0;
    uint32_t module_count = 0;
    uint64_t module_list = 0;
    uint64_t command_line = kBootCommandLine;
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
constexpr size_t kMaxMapEntries = (kBootCommandLine - kPvhMemoryMap) / sizeof(WireMapEntry);

Result<uint32_t> write_memory_map(const GuestMemory& memory) {
    const auto map = boot_memory_map(memory.regions());
    if (map.size() > kMaxMapEntries)
        return Error(ErrorCode::kInvalid, "RAM has too many regions for the boot memory map");
    uint64_t at = kPvhMemoryMap;
    for (const MapEntry& entry : map) {
        TRY(put_struct(memory, at, WireMapEntry{entry.address, entry.size, entry.type}));
        at += sizeof(WireMapEntry);
    }
    return static_cast<uint32_t>(map.size());
}

} // namespace

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

Result<InitialState> load_pvh(const GuestMemory& memory, const ElfKernel& kernel, const KernelFiles& files) {
    TRY(load_elf_kernel(files.kernel, kernel, memory, kNotForKernels));
    StartInfo info;
    info.rsdp = files.rsdp;
    TRY(write_command_line(memory, files.command_line, kMaxBootCommandLine));
    TRY_ASSIGN(info.memory_map_entries, write_memory_map(memory));
    TRY_ASSIGN(
        const InitrdPlace initrd, place_initrd(memory, files.initrd, occupied_by(kernel), kPciHoleStart));
    if (initrd.size > 0) {
        ModuleEntry module;
        module.address = initrd.address;
        module.size = initrd.size;
        TRY(put_struct(memory, kPvhModuleList, module));
        info.module_list = kPvhModuleList;
        info.module_count = 1;
    }
    TRY(put_struct(memory, kPvhStartInfo, info));
    return pvh_initial_state(*kernel.pvh_entry);
}

} // namespace liveupdate::vmm
