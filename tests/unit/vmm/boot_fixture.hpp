// A small well-formed PVH kernel to break, and guest RAM to load it into.
#pragma once

#include <doctest/doctest.h>
#include <elf.h>
#include <sys/mman.h>

#include <cstring>
#include <string>
#include <vector>

#include "handoff/base/fd.hpp"
#include "vmm/boot/kernel.hpp"
#include "vmm/boot/memory_map.hpp"

namespace liveupdate::vmm::test {

inline UniqueFd file_of(const std::string& content) {
    auto file = fd::memfd_create("image", 0);
    REQUIRE(file);
    REQUIRE(fd::write_all(file->get(), content.data(), content.size()));
    return std::move(*file);
}

struct Ram {
    std::vector<uint8_t> bytes;
    GuestMemory memory;

    explicit Ram(size_t size = 4 << 20)
        : bytes(size, 0xEE),
          memory(*GuestMemory::over({{0, size, 0, 0}}, std::vector<std::span<uint8_t>>{bytes})) {}

    template <typename T>
    T get(uint64_t gpa) const {
        T value;
        std::memcpy(&value, bytes.data() + gpa, sizeof value);
        return value;
    }
};

// Boots the kernel file `kernel`; an empty `initrd` is none.
inline Result<InitialState> boot_file(const Ram& ram, const std::string& kernel,
    std::string_view command_line = {}, const std::string& initrd = {}, uint64_t rsdp = 0) {
    const UniqueFd kernel_fd = file_of(kernel), initrd_fd = file_of(initrd);
    KernelFiles files;
    files.kernel = kernel_fd.get();
    if (!initrd.empty()) files.initrd = initrd_fd.get();
    files.command_line = command_line;
    files.rsdp = rsdp;
    return load_kernel(ram.memory, files);
}

constexpr uint64_t kKernelBase = 0x200000;
constexpr uint32_t kKernelEntry = kKernelBase + 8;

// The parts of the kernel, laid out one after the other; tests change them before they ask for the file.
struct KernelParts64 {
    using Header = Elf64_Ehdr;
    using Program = Elf64_Phdr;
    static constexpr unsigned char kClass = ELFCLASS64;
    static constexpr uint16_t kMachine = EM_X86_64;
};
struct KernelParts32 {
    using Header = Elf32_Ehdr;
    using Program = Elf32_Phdr;
    static constexpr unsigned char kClass = ELFCLASS32;
    static constexpr uint16_t kMachine = EM_386;
};

template <typename Parts>
struct KernelImage {
    typename Parts::Header header{};
    typename Parts::Program load{};
    typename Parts::Program note{};
    struct {
        Elf32_Nhdr other{4, 2, 1};
        char other_name[4] = {'A', 'b', 'c', 0};
        char other_data[4] = {1, 2, 0, 0};
        Elf32_Nhdr entry{4, 4, 18};
        char entry_name[4] = {'X', 'e', 'n', 0};
        uint32_t entry_point = kKernelEntry;
    } notes;
    std::string code = std::string("kernel code and data");

    KernelImage() {
        std::memcpy(header.e_ident, ELFMAG, SELFMAG);
        header.e_ident[EI_CLASS] = Parts::kClass;
        header.e_ident[EI_DATA] = ELFDATA2LSB;
        header.e_ident[EI_VERSION] = EV_CURRENT;
        header.e_type = ET_EXEC;
        header.e_machine = Parts::kMachine;
        header.e_phoff = sizeof header;
        header.e_phentsize = sizeof load;
        header.e_phnum = 2;
        note.p_type = PT_NOTE;
        note.p_offset = sizeof header + sizeof load + sizeof note;
        note.p_filesz = sizeof notes;
        note.p_align = 4;
        load.p_type = PT_LOAD;
        load.p_offset = note.p_offset + sizeof notes;
        load.p_paddr = kKernelBase;
        load.p_filesz = static_cast<decltype(load.p_filesz)>(code.size());
        load.p_memsz = 0x1000;
    }

    std::string file() const {
        std::string all;
        const auto add = [&all](const auto& part) {
            all.append(reinterpret_cast<const char*>(&part), sizeof part);
        };
        add(header);
        add(load);
        add(note);
        add(notes);
        return all + code;
    }
};

using Kernel64 = KernelImage<KernelParts64>;
using Kernel32 = KernelImage<KernelParts32>;

} // namespace liveupdate::vmm::test
