#include "vmm/boot/kernel.hpp"

#include "tests/unit/vmm/boot_fixture.hpp"
#include "vmm/boot/linux.hpp"
#include "vmm/boot/pvh.hpp"

namespace liveupdate::vmm::test {
namespace {

std::string complaint(const std::string& file) {
    Ram ram;
    const auto state = boot_file(ram, file);
    REQUIRE_FALSE(state);
    return state.error().message;
}

TEST_CASE("an ELF kernel with a PVH note starts by PVH, one without it at its 64-bit entry") {
    Ram ram;
    Kernel64 kernel;
    kernel.header.e_entry = kKernelBase + 4;
    const auto pvh = boot_file(ram, kernel.file());
    REQUIRE(pvh);
    CHECK(pvh->rip == kKernelEntry);
    CHECK(pvh->rbx == kPvhStartInfo);

    kernel.notes.entry.n_type = 99;
    const auto linux_entry = boot_file(ram, kernel.file());
    REQUIRE(linux_entry);
    CHECK(linux_entry->rip == kKernelBase + 4);
    CHECK(linux_entry->rsi == kLinuxBootParams);
    CHECK(std::memcmp(&ram.bytes[kKernelBase], kernel.code.data(), kernel.code.size()) == 0);
}

TEST_CASE("an ELF kernel without an entry that is known is refused") {
    Kernel64 outside;
    outside.notes.entry.n_type = 99;
    outside.header.e_entry = kKernelBase + 0x1000;
    CHECK(complaint(outside.file()).find("neither a PVH entry") != std::string::npos);
    Kernel32 narrow;
    narrow.notes.entry.n_type = 99;
    narrow.header.e_entry = kKernelBase;
    CHECK(complaint(narrow.file()).find("neither a PVH entry") != std::string::npos);
}

TEST_CASE("what is no kernel is refused by the name of what it is") {
    const std::string rest(5000, 'r');
    CHECK(complaint("\x1F\x8B" + rest).find("gzip") != std::string::npos);
    CHECK(complaint("\xFD"
                    "7zXZ" +
                    rest)
              .find("xz") != std::string::npos);
    CHECK(complaint("\x28\xB5\x2F\xFD" + rest).find("zstd") != std::string::npos);
    CHECK(complaint("070701" + rest).find("'initrd'") != std::string::npos);
    CHECK(complaint(rest).find("neither an ELF file nor a Linux bzImage") != std::string::npos);
    CHECK(complaint("").find("neither an ELF file nor a Linux bzImage") != std::string::npos);
}

TEST_CASE("a kernel that wants to lie where the firmware's tables are is refused") {
    Kernel64 kernel;
    kernel.load.p_paddr = 0xF0000;
    kernel.notes.entry_point = 0xF0000;
    CHECK(complaint(kernel.file()).find("overlaps") != std::string::npos);
}

TEST_CASE("an initrd that is a directory or empty is refused") {
    Ram ram;
    const UniqueFd kernel = file_of(Kernel64().file()), empty = file_of("");
    const auto folder = fd::open("/", 0);
    REQUIRE(folder);
    KernelFiles files;
    files.kernel = kernel.get();
    for (const int initrd : {folder->get(), empty.get()}) {
        files.initrd = initrd;
        const auto state = load_kernel(ram.memory, files);
        REQUIRE_FALSE(state);
        CHECK(state.error().message.find("initrd") != std::string::npos);
    }
}

} // namespace
} // namespace liveupdate::vmm::test
