#include "vmm/boot/elf.hpp"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>

#include "vmm/boot/image_file.hpp"

namespace liveupdate::vmm {
namespace {

// Kernels have a handful of program headers and a few hundred bytes of notes.
constexpr uint16_t kMaxProgramHeaders = 64;
constexpr uint64_t kMaxNoteBytes = 64 << 10;
// xen/include/public/elfnote.h
constexpr uint32_t kXenNotePhys32Entry = 18;

Error invalid(std::string why) {
    return {ErrorCode::kInvalid, std::move(why)};
}

bool within(uint64_t offset, uint64_t size, uint64_t limit) {
    return offset <= limit && size <= limit - offset;
}

// A program header of either class, widened.
struct ProgramHeader {
    uint32_t type;
    uint64_t offset;
    uint64_t paddr;
    uint64_t file_size;
    uint64_t size;
    uint64_t align;
};

struct ProgramHeaders {
    uint64_t file_size;
    std::optional<uint64_t> entry_64; // of an ELF64 file
    std::vector<ProgramHeader> entries;
};

template <typename T>
Result<T> read_struct(int fd, uint64_t offset) {
    T value{};
    TRY(read_image(fd, offset, {reinterpret_cast<uint8_t*>(&value), sizeof value}));
    return value;
}

template <typename Header>
Result<void> check_header(const Header& header, uint16_t machine, size_t program_header_size) {
    if (header.e_machine != machine) return invalid("it is an ELF file for another machine than x86");
    if (header.e_type != ET_EXEC)
        return invalid("it is not an executable with fixed addresses (ELF type " +
                       std::to_string(header.e_type) + ", wanted ET_EXEC)");
    if (header.e_phentsize != program_header_size)
        return invalid("its program headers have " + std::to_string(header.e_phentsize) + " bytes, not " +
                       std::to_string(program_header_size));
    if (header.e_phnum == 0 || header.e_phnum > kMaxProgramHeaders)
        return invalid("it has " + std::to_string(header.e_phnum) + " program headers; 1 to " +
                       std::to_string(kMaxProgramHeaders) + " are taken");
    return {};
}

template <typename Header, typename Program>
Result<ProgramHeaders> read_program_headers(int fd, uint64_t file_size, uint16_t machine) {
    TRY_ASSIGN(const auto header, read_struct<Header>(fd, 0));
    TRY(check_header(header, machine, sizeof(Program)));
    if (!within(header.e_phoff, uint64_t{header.e_phnum} * sizeof(Program), file_size))
        return invalid("its program headers lie outside the file");
    ProgramHeaders headers{file_size, {}, {}};
    if constexpr (sizeof header.e_entry == 8) headers.entry_64 = header.e_entry;
    for (uint16_t i = 0; i < header.e_phnum; ++i) {
        TRY_ASSIGN(const auto p, read_struct<Program>(fd, header.e_phoff + i * sizeof(Program)));
        headers.entries.push_back({p.p_type, p.p_offset, p.p_paddr, p.p_filesz, p.p_memsz, p.p_align});
    }
    return headers;
}

Result<ProgramHeaders> read_headers(int fd) {
    TRY_ASSIGN(const uint64_t file_size, image_size(fd));
    unsigned char ident[EI_NIDENT]{};
    if (file_size < sizeof ident) return invalid("it is too short to be an ELF file");
    TRY(read_image(fd, 0, ident));
    if (std::memcmp(ident, ELFMAG, SELFMAG) != 0) return invalid("it is not an ELF file");
    if (ident[EI_DATA] != ELFDATA2LSB || ident[EI_VERSION] != EV_CURRENT)
        return invalid("it is an ELF file, but not a little-endian one of version 1");
    switch (ident[EI_CLASS]) {
    case ELFCLASS64:
        return read_program_headers<Elf64_Ehdr, Elf64_Phdr>(fd, file_size, EM_X86_64);
    case ELFCLASS32:
        return read_program_headers<Elf32_Ehdr, Elf32_Phdr>(fd, file_size, EM_386);
    default:
        return invalid("it is an ELF file of unknown class " + std::to_string(ident[EI_CLASS]));
    }
}

Result<std::vector<ElfSegment>> collect_segments(const ProgramHeaders& headers) {
    std::vector<ElfSegment> segments;
    for (const ProgramHeader& p : headers.entries) {
        if (p.type != PT_LOAD || p.size == 0) continue;
        const std::string which = "its segment at " + describe_range(p.paddr, p.size);
        if (p.file_size > p.size) return invalid(which + " is larger in the file than in memory");
        if (!within(p.offset, p.file_size, headers.file_size))
            return invalid(which + " lies outside the file");
        if (!within(p.paddr, p.size, kPhysicalLimit)) return invalid(which + " lies beyond guest memory");
        segments.push_back({p.offset, p.file_size, p.paddr, p.size});
    }
    if (segments.empty()) return invalid("it has no segment to load");
    std::sort(segments.begin(), segments.end(),
        [](const ElfSegment& a, const ElfSegment& b) { return a.gpa < b.gpa; });
    for (size_t i = 1; i < segments.size(); ++i)
        if (segments[i - 1].gpa + segments[i - 1].size > segments[i].gpa)
            return invalid("its segments at " + describe_range(segments[i - 1].gpa, segments[i - 1].size) +
                           " and " + describe_range(segments[i].gpa, segments[i].size) + " overlap");
    return segments;
}

size_t align_up(size_t value, size_t alignment) {
    return (value + alignment - 1) / alignment * alignment;
}

// The descriptor of the entry note: a physical address of 4 bytes, or of 8 as some linkers' pointers.
Result<uint32_t> entry_of(std::span<const uint8_t> descriptor) {
    uint64_t entry = 0;
    if (descriptor.size() != 4 && descriptor.size() != 8)
        return invalid(
            "its PVH entry note holds " + std::to_string(descriptor.size()) + " bytes, not 4 or 8");
    std::memcpy(&entry, descriptor.data(), descriptor.size());
    if (entry > UINT32_MAX) return invalid("its PVH entry point lies above 4 GiB");
    return static_cast<uint32_t>(entry);
}

// Walks one PT_NOTE segment. A note that does not fit ends the walk: what comes after cannot be found.
Result<std::optional<uint32_t>> find_entry(std::span<const uint8_t> notes, size_t alignment) {
    while (notes.size() >= sizeof(Elf32_Nhdr)) {
        Elf32_Nhdr note;
        std::memcpy(&note, notes.data(), sizeof note);
        // The sizes have 32 bits, so no sum of these overflows a size_t.
        const size_t descriptor_at = align_up(sizeof note + size_t{note.n_namesz}, alignment);
        const size_t end = descriptor_at + note.n_descsz;
        if (end > notes.size()) return invalid("a note in it is larger than its segment");
        const auto name = notes.subspan(sizeof note, note.n_namesz);
        const bool xen = name.size() == 4 && std::memcmp(name.data(), "Xen", 4) == 0;
        if (xen && note.n_type == kXenNotePhys32Entry) {
            TRY_ASSIGN(const uint32_t entry, entry_of(notes.subspan(descriptor_at, note.n_descsz)));
            return std::optional(entry);
        }
        notes = notes.subspan(std::min(align_up(end, alignment), notes.size()));
    }
    return std::optional<uint32_t>();
}

Result<std::optional<uint32_t>> find_pvh_entry(int fd, const ProgramHeaders& headers) {
    for (const ProgramHeader& p : headers.entries) {
        if (p.type != PT_NOTE) continue;
        if (p.file_size > kMaxNoteBytes || !within(p.offset, p.file_size, headers.file_size))
            return invalid("its notes are larger than 64 KiB or lie outside the file");
        std::vector<uint8_t> bytes(p.file_size);
        TRY(read_image(fd, p.offset, bytes));
        TRY_ASSIGN(const auto entry, find_entry(bytes, p.align == 8 ? 8 : 4));
        if (entry) return entry;
    }
    return std::optional<uint32_t>();
}

bool in_a_segment(const std::vector<ElfSegment>& segments, uint64_t address) {
    return std::any_of(segments.begin(), segments.end(),
        [address](const ElfSegment& s) { return address >= s.gpa && address - s.gpa < s.size; });
}

} // namespace

Result<ElfKernel> read_elf_kernel(int fd) {
    TRY_ASSIGN(const auto headers, read_headers(fd));
    TRY_ASSIGN(auto segments, collect_segments(headers));
    TRY_ASSIGN(const auto pvh_entry, find_pvh_entry(fd, headers));
    if (pvh_entry && !in_a_segment(segments, *pvh_entry))
        return invalid(
            "its PVH entry point " + describe_range(*pvh_entry, 1) + " lies in none of its segments");
    std::optional<uint64_t> entry_64 = headers.entry_64;
    if (entry_64 && !in_a_segment(segments, *entry_64)) entry_64.reset();
    return ElfKernel{std::move(segments), pvh_entry, entry_64};
}

Result<void> load_elf_kernel(
    int fd, const ElfKernel& kernel, const GuestMemory& memory, std::span<const GuestRange> reserved) {
    std::vector<std::span<uint8_t>> targets;
    for (const ElfSegment& segment : kernel.segments) {
        for (const GuestRange& range : reserved)
            if (range.overlaps({segment.gpa, segment.size}))
                return invalid("its segment at " + describe_range(segment.gpa, segment.size) +
                               " overlaps the boot structures or the BIOS area at " +
                               describe_range(range.start, range.size));
        TRY_ASSIGN(
            const auto target, memory.at(segment.gpa, segment.size).context("its segment does not fit"));
        targets.push_back(target);
    }
    for (size_t i = 0; i < targets.size(); ++i) {
        const ElfSegment& segment = kernel.segments[i];
        TRY(read_image(fd, segment.file_offset, targets[i].first(segment.file_size)));
        const auto tail = targets[i].subspan(segment.file_size);
        std::fill(tail.begin(), tail.end(), uint8_t{0});
    }
    return {};
}

} // namespace liveupdate::vmm
