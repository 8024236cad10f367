#include "vmm/boot/pvh.hpp"

#include <algorithm>

#include "tests/unit/vmm/boot_fixture.hpp"

namespace liveupdate::vmm::test {
namespace {

constexpr uint64_t kRsdp = 0xE0000;

Result<InitialState> boot(const Ram& ram, std::string_view command_line, const std::string& initrd = {}) {
    return boot_file(ram, Kernel64().file(), command_line, initrd, kRsdp);
}

TEST_CASE("the first vCPU starts in flat 32-bit protected mode with the start info in EBX") {
    Ram ram;
    const auto state = boot(ram, "");
    REQUIRE(state);
    CHECK(state->rip == kKernelEntry);
    CHECK(state->rbx == kPvhStartInfo);
    CHECK((state->cr0 & ~0x10u) == 1);
    CHECK(state->cr4 == 0);
    CHECK((state->rflags & 0x20300) == 0);
    for (const SegmentState& segment : {state->cs, state->data}) {
        CHECK(segment.base == 0);
        CHECK(segment.limit == 0xFFFFFFFF);
        CHECK(segment.default_32);
        CHECK(segment.present);
        CHECK(segment.code_or_data);
    }
    CHECK(state->cs.type == 0xB);
    CHECK(state->data.type == 0x3);
    CHECK(state->tr.type == 0xB);
    CHECK(state->tr.limit == 0x67);
    CHECK_FALSE(state->tr.code_or_data);
    CHECK_FALSE(state->ldt.present);
}

TEST_CASE("the start info leads to command line, memory map and initrd") {
    Ram ram;
    const std::string initrd(5000, 'i');
    REQUIRE(boot(ram, "console=ttyS0", initrd));
    CHECK(ram.get<uint32_t>(kPvhStartInfo) == 0x336EC578);
    CHECK(ram.get<uint32_t>(kPvhStartInfo + 4) == 1);
    CHECK(ram.get<uint32_t>(kPvhStartInfo + 12) == 1); // modules
    const auto module = ram.get<uint64_t>(kPvhStartInfo + 16);
    const auto command_line = ram.get<uint64_t>(kPvhStartInfo + 24);
    CHECK(ram.get<uint64_t>(kPvhStartInfo + 32) == kRsdp);
    CHECK(ram.get<uint64_t>(kPvhStartInfo + 40) == kPvhMemoryMap);
    CHECK(ram.get<uint32_t>(kPvhStartInfo + 48) == 4);
    CHECK(std::string(reinterpret_cast<const char*>(&ram.bytes[command_line])) == "console=ttyS0");
    const auto address = ram.get<uint64_t>(module);
    CHECK(ram.get<uint64_t>(module + 8) == initrd.size());
    CHECK(address == ram.bytes.size() - 0x2000);
    CHECK(std::memcmp(&ram.bytes[address], initrd.data(), initrd.size()) == 0);
    CHECK(ram.get<uint64_t>(kPvhMemoryMap) == 0);
    CHECK(ram.get<uint64_t>(kPvhMemoryMap + 8) == 0x9FC00);
    CHECK(ram.get<uint32_t>(kPvhMemoryMap + 16) == kMapRam);
}

TEST_CASE("without an initrd no module is told") {
    Ram ram;
    REQUIRE(boot(ram, "x"));
    CHECK(ram.get<uint32_t>(kPvhStartInfo + 12) == 0);
    CHECK(ram.get<uint64_t>(kPvhStartInfo + 16) == 0);
}

TEST_CASE("a command line that does not fit or holds a zero is refused") {
    Ram ram;
    CHECK(boot(ram, std::string(kMaxBootCommandLine, 'x')));
    CHECK_FALSE(boot(ram, std::string(kMaxBootCommandLine + 1, 'x')));
    CHECK_FALSE(boot(ram, std::string_view("a\0b", 3)));
}

TEST_CASE("an initrd that does not fit beside the kernel is refused") {
    Ram ram;
    CHECK(boot(ram, "", std::string(0x1FF000, 'i')));
    CHECK_FALSE(boot(ram, "", std::string(0x1FF001, 'i')));
    CHECK_FALSE(boot(ram, "", std::string(8 << 20, 'i')));
}

TEST_CASE("a guest without RAM above 1 MiB is refused") {
    Ram ram(1 << 20);
    const auto state = boot(ram, "");
    REQUIRE_FALSE(state);
    CHECK(state.error().message.find("1 MiB") != std::string::npos);
}

} // namespace
} // namespace liveupdate::vmm::test
