#include "vmm/boot/kernel.hpp"

#include <elf.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "vmm/boot/e820.hpp"
#include "vmm/boot/image_file.hpp"
#include "vmm/boot/linux.hpp"
#include "vmm/boot/pvh.hpp"

namespace liveupdate::vmm {
namespace {

Error invalid(std::string why) {
    return {ErrorCode::kInvalid, std::move(why)};
}

// What people mistake for a kernel, by its first bytes.
std::string describe_unknown(std::span<const uint8_t> start) {
    const auto begins = [start](std::string_view magic) {
        return start.size() >= magic.size() && std::memcmp(start.data(), magic.data(), magic.size()) == 0;
    };
    if (begins("\x1F\x8B")) return "it is compressed with gzip; unpack it first";
    if (begins("\xFD"
               "7zXZ"))
        return "it is compressed with xz; unpack it first";
    if (begins("\x28\xB5\x2F\xFD")) return "it is compressed with zstd; unpack it first";
    if (begins("070701")) return "it is a cpio archive; 'initrd' is the key for that";
    return "it is neither an ELF file nor a Linux bzImage; give a vmlinux, a bzImage (vmlinuz) or another "
           "kernel with a PVH entry";
}

Result<InitialState> load_elf(const GuestMemory& memory, const KernelFiles& files) {
    TRY_ASSIGN(const ElfKernel kernel, read_elf_kernel(files.kernel));
    if (kernel.pvh_entry) return load_pvh(memory, kernel, files);
    if (kernel.entry_64) return load_vmlinux(memory, kernel, files);
    return invalid("it has neither a PVH entry point (ELF note XEN_ELFNOTE_PHYS32_ENTRY) nor a 64-bit entry "
                   "point; a Linux kernel needs CONFIG_PVH=y or CONFIG_X86_64=y");
}

} // namespace

Result<InitialState> load_kernel(const GuestMemory& memory, const KernelFiles& files) {
    TRY(check_low_memory(memory));
    TRY_ASSIGN(const uint64_t size, image_size(files.kernel).context("kernel"));
    std::array<uint8_t, kSetupHeaderEnd> bytes{};
    const auto start = std::span(bytes).first(std::min<uint64_t>(size, bytes.size()));
    TRY(read_image(files.kernel, 0, start).context("kernel"));
    if (start.size() >= SELFMAG && std::memcmp(start.data(), ELFMAG, SELFMAG) == 0)
        return load_elf(memory, files).context("kernel");
    if (is_bzimage(start)) return load_bzimage(memory, start, files).context("kernel");
    return invalid(describe_unknown(start)).context("kernel");
}

std::vector<GuestRange> occupied_by(const ElfKernel& kernel) {
    std::vector<GuestRange> occupied;
    for (const ElfSegment& segment : kernel.segments)
        occupied.push_back({segment.gpa, segment.size});
    return occupied;
}

Result<void> check_low_memory(const GuestMemory& memory) {
    const auto regions = memory.regions();
    if (!regions.empty() && regions[0].gpa == 0 && regions[0].size > kHighRamStart) return {};
    return invalid("the first RAM block must have more than 1 MiB to boot a kernel");
}

Result<void> write_command_line(const GuestMemory& memory, std::string_view text, size_t limit) {
    limit = std::min(limit, kMaxBootCommandLine);
    if (text.size() > limit)
        return invalid("the command line has " + std::to_string(text.size()) + " bytes, at most " +
                       std::to_string(limit) + " fit");
    if (text.find('\0') != std::string_view::npos) return invalid("the command line has a zero byte in it");
    std::vector<uint8_t> bytes(text.begin(), text.end());
    bytes.push_back(0);
    return memory.write(kBootCommandLine, bytes);
}

Result<InitrdPlace> place_initrd(
    const GuestMemory& memory, int initrd_fd, const std::vector<GuestRange>& kernel, uint64_t limit) {
    if (initrd_fd < 0) return InitrdPlace{};
    TRY_ASSIGN(const uint64_t size, image_size(initrd_fd).context("initrd"));
    if (size == 0) return invalid("the initrd is empty; leave it out, or give an archive");
    const uint64_t top = std::min(memory.regions()[0].size, limit);
    if (top < kHighRamStart || size > top - kHighRamStart)
        return invalid("the initrd has " + std::to_string(size) + " bytes, and only the RAM from 1 MiB to " +
                       std::to_string(top) + " can hold it; the guest needs more RAM");
    const uint64_t start = (top - size) / kPageSize * kPageSize;
    for (const GuestRange& part : kernel)
        if (part.overlaps({start, size}))
            return invalid("the initrd at " + describe_range(start, size) +
                           " would overlap the kernel's part at " + describe_range(part.start, part.size) +
                           "; the guest needs more RAM");
    TRY_ASSIGN(const auto target, memory.at(start, size));
    TRY(read_image(initrd_fd, 0, target).context("initrd"));
    return InitrdPlace{start, size};
}

} // namespace liveupdate::vmm
