#include "vmm/boot/linux.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "vmm/boot/e820.hpp"
#include "vmm/boot/image_file.hpp"

namespace liveupdate::vmm {
namespace {

// Documentation/x86/boot.rst, "The Real-Mode Kernel Header"; packed.
struct [[gnu::packed]] SetupHeader {
    uint8_t setup_sects = 0;
    uint16_t root_flags = 0;
    uint32_t syssize = 0; // of the protected-mode code, in units of 16 bytes
    uint16_t ram_size = 0;
    uint16_t vid_mode = 0;
    uint16_t root_dev = 0;
    uint16_t boot_flag = 0;
    uint8_t jump_opcode = 0;
    uint8_t jump_offset = 0; // the header ends this far behind the jump
    uint32_t header = 0;     // "HdrS"
    uint16_t version = 0;
    uint32_t realmode_switch = 0;
    uint16_t start_sys_seg = 0;
    uint16_t kernel_version = 0;
    uint8_t type_of_loader = 0;
    uint8_t loadflags = 0;
    uint16_t setup_move_size = 0;
    uint32_t code32_start = 0;
    uint32_t ramdisk_image = 0;
    uint32_t ramdisk_size = 0;
    uint32_t bootsect_kludge = 0;
    uint16_t heap_end_ptr = 0;
    uint8_t ext_loader_ver = 0;
    uint8_t ext_loader_type = 0;
    uint32_t cmd_line_ptr = 0;
    uint32_t initrd_addr_max = 0; // the last byte that an initrd may have
    uint32_t kernel_alignment = 0;
    uint8_t relocatable_kernel = 0;
    uint8_t min_alignment = 0;
    uint16_t xloadflags = 0;
    uint32_t cmdline_size = 0; // without the final 0
    uint32_t hardware_subarch = 0;
    uint64_t hardware_subarch_data = 0;
    uint32_t payload_offset = 0;
    uint32_t payload_length = 0;
    uint64_t setup_data = 0;
    uint64_t pref_address = 0;
    uint32_t init_size = 0; // what the kernel needs from its start until it has read the memory map
    uint32_t handover_offset = 0;
};
constexpr size_t kHeaderAt = 0x1F1;
static_assert(sizeof(SetupHeader) == 0x268 - kHeaderAt);

constexpr uint16_t kBootFlag = 0xAA55;
constexpr uint32_t kHeaderMagic = 0x53726448; // "HdrS"
constexpr uint16_t kVersionOf64BitEntry = 0x20C;
constexpr uint16_t kHas64BitEntry = 0x1; // xloadflags, XLF_KERNEL_64
constexpr uint8_t kLoadedHigh = 0x1;     // loadflags
constexpr uint8_t kLoaderWithoutNumber = 0xFF;
constexpr uint64_t kEntry64 = 0x200; // behind the start of the protected-mode code
constexpr uint64_t kSector = 512;
constexpr uint8_t kSetupSectorsOfOld = 4; // what 0 stands for

// Documentation/x86/zero-page.rst, and arch/x86/include/uapi/asm/bootparam.h
constexpr size_t kRsdpAt = 0x70;
constexpr size_t kMapEntriesAt = 0x1E8;
constexpr size_t kMapAt = 0x2D0;
constexpr size_t kMaxMapEntries = 128;
struct [[gnu::packed]] WireMapEntry {
    uint64_t address;
    uint64_t size;
    uint32_t type;
};
static_assert(sizeof(WireMapEntry) == 20);
using BootParams = std::array<uint8_t, kPageSize>;
static_assert(kMapAt + kMaxMapEntries * sizeof(WireMapEntry) <= sizeof(BootParams));

constexpr uint16_t kCodeSelector = 0x10, kDataSelector = 0x18, kTaskSelector = 0x20;

Error invalid(std::string why) {
    return {ErrorCode::kInvalid, std::move(why)};
}

template <typename T>
void set_at(BootParams& params, size_t offset, const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    std::memcpy(params.data() + offset, &value, sizeof value);
}

// What the file says beyond the header we know is kept as it is: boot_params has it at the same place.
SetupHeader header_of(std::span<const uint8_t> start) {
    SetupHeader header;
    std::memcpy(&header, start.data() + kHeaderAt, std::min(sizeof header, start.size() - kHeaderAt));
    return header;
}

Result<void> check_header(const SetupHeader& header) {
    if (header.version < kVersionOf64BitEntry || (header.xloadflags & kHas64BitEntry) == 0)
        return invalid(
            "it is a bzImage without a 64-bit entry point; a 64-bit kernel of Linux 3.8 or later is "
            "wanted");
    if ((header.loadflags & kLoadedHigh) == 0) return invalid("it is a zImage, which loads below 1 MiB");
    return {};
}

// Where the protected-mode code lies in the file, and where it goes.
struct Code {
    uint64_t file_offset;
    uint64_t size;
    GuestRange memory; // init_size from the load address on
};

Result<Code> find_code(const SetupHeader& header, uint64_t file_size) {
    const uint64_t sectors = header.setup_sects == 0 ? kSetupSectorsOfOld : header.setup_sects;
    const uint64_t offset = (sectors + 1) * kSector;
    const uint64_t size = uint64_t{header.syssize} * 16;
    if (size <= kEntry64) return invalid("its header tells of no code");
    // The last unit need not be whole.
    if (offset > file_size || file_size - offset + 15 < size)
        return invalid("it is cut short: the file has " + std::to_string(file_size) +
                       " bytes, its header tells " + "of " + std::to_string(offset + size));
    const uint64_t there = std::min(size, file_size - offset);
    const GuestRange memory{header.pref_address, std::max<uint64_t>(header.init_size, there)};
    if (memory.start < kHighRamStart || memory.start % kPageSize != 0 || memory.start > kPciHoleStart)
        return invalid("it wants to be loaded at " + describe_range(memory.start, memory.size));
    return Code{offset, there, memory};
}

Result<void> add_memory_map(const GuestMemory& memory, BootParams& params) {
    const auto map = boot_memory_map(memory.regions());
    if (map.size() > kMaxMapEntries) return invalid("RAM has too many regions for the boot memory map");
    set_at(params, kMapEntriesAt, static_cast<uint8_t>(map.size()));
    size_t at = kMapAt;
    for (const MapEntry& entry : map) {
        set_at(params, at, WireMapEntry{entry.address, entry.size, entry.type});
        at += sizeof(WireMapEntry);
    }
    return {};
}

// The first 4 GiB, mapped to themselves: one PML4, one page directory pointer table, four page directories.
Result<void> write_page_tables(const GuestMemory& memory) {
    constexpr uint64_t kPresentWritable = 0x3, kLargePage = 0x80, kLargePageSize = 2 << 20;
    constexpr size_t kEntries = kPageSize / 8, kDirectories = 4;
    std::array<uint64_t, (2 + kDirectories) * kEntries> entries{};
    static_assert(kLinuxPageTables + sizeof entries <= kBootCommandLine);
    entries[0] = (kLinuxPageTables + kPageSize) | kPresentWritable;
    for (size_t i = 0; i < kDirectories; ++i)
        entries[kEntries + i] = (kLinuxPageTables + (2 + i) * kPageSize) | kPresentWritable;
    for (size_t i = 0; i < kDirectories * kEntries; ++i)
        entries[2 * kEntries + i] = i * kLargePageSize | kPresentWritable | kLargePage;
    return put_struct(memory, kLinuxPageTables, entries);
}

Result<void> write_gdt(const GuestMemory& memory) {
    const std::array<uint64_t, 4> gdt = {0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF};
    return put_struct(memory, kLinuxGdt, gdt);
}

// What is the same for both kinds of file. `header` has what the file says, or what stands for it.
Result<InitialState> finish(const GuestMemory& memory, const KernelFiles& files, BootParams& params,
    SetupHeader header, const std::vector<GuestRange>& kernel, uint64_t entry) {
    header.type_of_loader = kLoaderWithoutNumber;
    header.cmd_line_ptr = kBootCommandLine;
    TRY(write_command_line(memory, files.command_line, header.cmdline_size));
    const uint64_t limit = std::min(uint64_t{header.initrd_addr_max} + 1, kPciHoleStart);
    TRY_ASSIGN(const InitrdPlace initrd, place_initrd(memory, files.initrd, kernel, limit));
    header.ramdisk_image = static_cast<uint32_t>(initrd.address);
    header.ramdisk_size = static_cast<uint32_t>(initrd.size);
    header.setup_data = 0; // a file cannot know of anything there
    set_at(params, kHeaderAt, header);
    set_at(params, kRsdpAt, files.rsdp);
    TRY(add_memory_map(memory, params));
    TRY(put_struct(memory, kLinuxBootParams, params));
    TRY(write_gdt(memory));
    TRY(write_page_tables(memory));
    return linux_initial_state(entry);
}

} // namespace

bool is_bzimage(std::span<const uint8_t> start) {
    if (start.size() < kHeaderAt + sizeof(SetupHeader)) return false;
    const SetupHeader header = header_of(start);
    return header.boot_flag == kBootFlag && header.header == kHeaderMagic;
}

Result<InitialState> load_bzimage(
    const GuestMemory& memory, std::span<const uint8_t> start, const KernelFiles& files) {
    const SetupHeader header = header_of(start);
    TRY(check_header(header));
    TRY_ASSIGN(const uint64_t file_size, image_size(files.kernel));
    TRY_ASSIGN(const Code code, find_code(header, file_size));
    auto place = memory.at(code.memory.start, code.memory.size);
    if (!place)
        return std::move(place).error().context("it needs RAM at " +
                                                describe_range(code.memory.start, code.memory.size) +
                                                " to unpack itself; the guest needs more RAM");
    TRY(read_image(files.kernel, code.file_offset, place->first(code.size)));
    BootParams params{};
    constexpr size_t kJumpAt = 0x200;
    const size_t end = std::min(kJumpAt + 2 + header.jump_offset, start.size());
    if (end > kHeaderAt) std::memcpy(params.data() + kHeaderAt, start.data() + kHeaderAt, end - kHeaderAt);
    return finish(memory, files, params, header, {code.memory}, code.memory.start + kEntry64);
}

Result<InitialState> load_vmlinux(
    const GuestMemory& memory, const ElfKernel& kernel, const KernelFiles& files) {
    TRY(load_elf_kernel(files.kernel, kernel, memory, kNotForKernels));
    // A vmlinux has no header: this is what arch/x86/boot/header.S says.
    SetupHeader header;
    header.boot_flag = kBootFlag;
    header.header = kHeaderMagic;
    header.version = kVersionOf64BitEntry;
    header.loadflags = kLoadedHigh;
    header.initrd_addr_max = 0x7FFFFFFF;
    header.cmdline_size = 2047;
    BootParams params{};
    return finish(memory, files, params, header, occupied_by(kernel), *kernel.entry_64);
}

InitialState linux_initial_state(uint64_t entry) {
    constexpr uint64_t kPagingExtensionTypeProtection = 0x80000011; // PG, ET, PE
    constexpr uint64_t kPhysicalAddressExtension = 0x20;
    constexpr uint64_t kLongModeEnabledActive = 0x500; // LME, LMA
    constexpr uint8_t kCodeReadAccessed = 0xB;
    constexpr uint8_t kDataWriteAccessed = 0x3;
    constexpr uint8_t kBusyTss64 = 0xB;

    SegmentState flat;
    flat.limit = 0xFFFFFFFF;
    flat.page_granular = true;

    InitialState state;
    state.rip = entry;
    state.rsi = kLinuxBootParams;
    state.cr0 = kPagingExtensionTypeProtection;
    state.cr3 = kLinuxPageTables;
    state.cr4 = kPhysicalAddressExtension;
    state.efer = kLongModeEnabledActive;
    state.cs = flat;
    state.cs.selector = kCodeSelector;
    state.cs.type = kCodeReadAccessed;
    state.cs.long_mode = true;
    state.data = flat;
    state.data.selector = kDataSelector;
    state.data.type = kDataWriteAccessed;
    state.data.default_32 = true;
    state.tr = {.limit = 0x67, .selector = kTaskSelector, .type = kBusyTss64, .code_or_data = false};
    state.ldt = {.present = false};
    state.gdt = {kLinuxGdt, 4 * 8 - 1};
    state.idt.limit = 0;
    return state;
}

} // namespace liveupdate::vmm
