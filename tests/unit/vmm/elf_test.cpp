#include "vmm/boot/elf.hpp"

#include <fcntl.h>

#include <algorithm>
#include <random>

#include "tests/unit/vmm/boot_fixture.hpp"

namespace liveupdate::vmm::test {
namespace {

constexpr GuestRange kReserved{0x6000, 0x2A000};

Result<ElfKernel> load(const std::string& file, const Ram& ram) {
    const UniqueFd fd = file_of(file);
    TRY_ASSIGN(auto kernel, read_elf_kernel(fd.get()));
    TRY(load_elf_kernel(fd.get(), kernel, ram.memory, std::span(&kReserved, 1)));
    return kernel;
}

template <typename Change>
std::string refusal(Change change) {
    Kernel64 image;
    change(image);
    Ram ram;
    const auto loaded = load(image.file(), ram);
    REQUIRE_FALSE(loaded);
    // Refused files leave no trace in guest memory.
    CHECK(std::all_of(ram.bytes.begin(), ram.bytes.end(), [](uint8_t b) { return b == 0xEE; }));
    return loaded.error().message;
}

bool has(const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
}

TEST_CASE_TEMPLATE(
    "a kernel of either class is loaded, its tail zeroed and its entry found", Image, Kernel64, Kernel32) {
    Ram ram;
    const Image image;
    const auto kernel = load(image.file(), ram);
    REQUIRE_MESSAGE(kernel.has_value(), (kernel ? "" : kernel.error().message));
    CHECK(kernel->pvh_entry == kKernelEntry);
    CHECK(std::memcmp(&ram.bytes[kKernelBase], image.code.data(), image.code.size()) == 0);
    CHECK(ram.bytes[kKernelBase + image.code.size()] == 0);
    CHECK(ram.bytes[kKernelBase + 0xFFF] == 0);
    CHECK(ram.bytes[kKernelBase + 0x1000] == 0xEE);
    CHECK(ram.bytes[kKernelBase - 1] == 0xEE);
}

TEST_CASE("a kernel without the PVH note has no PVH entry, and its own only if that is physical") {
    Ram ram;
    const auto note_of = [&](auto change) {
        Kernel64 image;
        image.header.e_entry = kKernelBase + 4;
        change(image);
        const auto kernel = load(image.file(), ram);
        REQUIRE(kernel);
        CHECK(kernel->entry_64 == kKernelBase + 4);
        return kernel->pvh_entry;
    };
    CHECK(note_of([](auto&) {}) == kKernelEntry);
    CHECK_FALSE(note_of([](auto& k) { k.notes.entry.n_type = 17; }));
    CHECK_FALSE(note_of([](auto& k) { k.notes.entry_name[0] = 'Y'; }));
    CHECK_FALSE(note_of([](auto& k) { k.note.p_type = PT_NULL; }));
    Kernel64 image;
    image.header.e_entry = 0xFFFFFFFF80000000;
    CHECK_FALSE(load(image.file(), ram)->entry_64);
    Kernel32 narrow;
    narrow.header.e_entry = kKernelBase;
    CHECK_FALSE(load(narrow.file(), ram)->entry_64);
}

TEST_CASE("an entry outside the kernel is refused") {
    CHECK(has(refusal([](auto& k) { k.notes.entry_point = kKernelBase - 1; }), "none of its segments"));
    CHECK(has(refusal([](auto& k) { k.notes.entry_point = kKernelBase + 0x1000; }), "none of its segments"));
}

TEST_CASE("files that are no x86 executables are refused by what they are") {
    CHECK(has(refusal([](auto& k) { k.header.e_ident[0] = 0; }), "not an ELF file"));
    CHECK(has(refusal([](auto& k) { k.header.e_ident[EI_CLASS] = 7; }), "class 7"));
    CHECK(has(refusal([](auto& k) { k.header.e_ident[EI_DATA] = ELFDATA2MSB; }), "little-endian"));
    CHECK(has(refusal([](auto& k) { k.header.e_machine = EM_AARCH64; }), "another machine"));
    CHECK(has(refusal([](auto& k) { k.header.e_type = ET_DYN; }), "fixed addresses"));
    Ram ram;
    CHECK_FALSE(load("", ram));
    CHECK_FALSE(load("\x7F"
                     "ELF",
        ram));
    UniqueFd directory = *fd::open("/", O_RDONLY | O_DIRECTORY);
    CHECK_FALSE(read_elf_kernel(directory.get()));
    CHECK_FALSE(read_elf_kernel(-1));
}

TEST_CASE("tables and segments outside the file are refused") {
    CHECK(has(refusal([](auto& k) { k.header.e_phoff = UINT64_MAX; }), "outside the file"));
    CHECK(has(refusal([](auto& k) { k.header.e_phnum = 0; }), "program headers"));
    CHECK(has(refusal([](auto& k) { k.header.e_phnum = 0xFFFF; }), "program headers"));
    CHECK(has(refusal([](auto& k) { k.header.e_phentsize = 32; }), "program headers"));
    CHECK(has(refusal([](auto& k) { k.load.p_offset = UINT64_MAX - 4; }), "outside the file"));
    CHECK(has(refusal([](auto& k) { k.load.p_filesz = 0xFFF; }), "outside the file"));
    CHECK(has(refusal([](auto& k) { k.note.p_filesz = UINT64_MAX; }), "notes"));
    CHECK(has(refusal([](auto& k) { k.notes.other.n_descsz = UINT32_MAX; }), "note"));
    CHECK(has(refusal([](auto& k) { k.notes.entry.n_namesz = UINT32_MAX; }), "note"));
}

TEST_CASE("segments that do not fit into RAM are refused") {
    CHECK(has(refusal([](auto& k) { k.load.p_filesz = 0x2000; }), "larger in the file"));
    CHECK(has(refusal([](auto& k) { k.load.p_memsz = UINT64_MAX; }), "beyond guest memory"));
    CHECK(has(refusal([](auto& k) { k.load.p_memsz = 64 << 20; }), "does not fit"));
    CHECK(has(refusal([](auto& k) { k.load.p_memsz = 0; }), "no segment"));
}

TEST_CASE("segments over the boot structures or over each other are refused") {
    const auto low = [](auto& k) {
        k.load.p_paddr = kReserved.start - 0x800;
        k.notes.entry_point = kReserved.start - 0x800;
    };
    CHECK(has(refusal(low), "boot structures"));
    const auto twice = [](auto& k) {
        k.note = k.load;
        k.note.p_paddr += 0xFFF;
    };
    CHECK(has(refusal(twice), "overlap"));
}

TEST_CASE("no bit flip and no truncation of a kernel does harm") {
    const Kernel64 image64;
    const Kernel32 image32;
    for (const std::string& good : {image64.file(), image32.file()}) {
        const auto try_one = [](const std::string& file) {
            Ram ram(1 << 22);
            const auto result = load(file, ram);
            if (!result) CHECK_FALSE(result.error().message.empty());
        };
        for (size_t size = 0; size < good.size(); ++size)
            try_one(good.substr(0, size));
        const size_t headers = good.size() - 20;
        for (size_t bit = 0; bit < headers * 8; ++bit) {
            std::string file = good;
            file[bit / 8] = static_cast<char>(file[bit / 8] ^ (1 << bit % 8));
            try_one(file);
        }
    }
}

TEST_CASE("random damage to a kernel's headers does no harm") {
    const std::string good = Kernel64().file();
    std::mt19937 random(5);
    const Ram ram;
    for (int round = 0; round < 20'000; ++round) {
        std::string file = good;
        for (unsigned i = 0; i <= random() % 6; ++i)
            file[16 + random() % (file.size() - 16)] = static_cast<char>(random() % 3 == 0 ? 0xFF : random());
        [[maybe_unused]] const auto result = load(file, ram);
    }
}

} // namespace
} // namespace liveupdate::vmm::test
