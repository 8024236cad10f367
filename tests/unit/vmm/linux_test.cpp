#include "vmm/boot/linux.hpp"

#include <limits>
#include <random>

#include "tests/unit/vmm/boot_fixture.hpp"

namespace liveupdate::vmm::test {
namespace {

constexpr uint64_t kLoadAddress = 0x1000000;
constexpr size_t kRamSize = 32 << 20;
constexpr size_t kSetupSize = 5 * 512; // the boot sector and 4 more

// A bzImage whose code is recognisable; tests set fields by their offsets in boot.rst.
struct BzImage {
    std::string bytes = std::string(kSetupSize, '\0') + std::string(0x1000, 'k');

    BzImage() {
        set<uint8_t>(0x1F1, 4);            // setup_sects
        set<uint32_t>(0x1F4, 0x1000 / 16); // syssize
        set<uint16_t>(0x1FE, 0xAA55);
        set<uint16_t>(0x200, 0x66EB); // the header ends at 0x268
        set<uint32_t>(0x202, 0x53726448);
        set<uint16_t>(0x206, 0x20F);
        set<uint8_t>(0x211, 1);             // LOADED_HIGH
        set<uint32_t>(0x22C, 0x7FFFFFFF);   // initrd_addr_max
        set<uint32_t>(0x230, 0x200000);     // kernel_alignment
        set<uint16_t>(0x236, 0x3);          // xloadflags: XLF_KERNEL_64 and above 4 GiB
        set<uint32_t>(0x238, 2047);         // cmdline_size
        set<uint64_t>(0x258, kLoadAddress); // pref_address
        set<uint32_t>(0x260, 0x400000);     // init_size
    }

    template <typename T>
    BzImage& set(size_t offset, T value) {
        std::memcpy(bytes.data() + offset, &value, sizeof value);
        return *this;
    }
};

std::string complaint(const BzImage& image, std::string_view command_line = {}) {
    Ram ram(kRamSize);
    const auto state = boot_file(ram, image.bytes, command_line);
    REQUIRE_FALSE(state);
    return state.error().message;
}

TEST_CASE("a bzImage starts in 64-bit mode behind its first 512 bytes, with RSI at boot_params") {
    Ram ram(kRamSize);
    const auto state = boot_file(ram, BzImage().bytes);
    REQUIRE(state);
    CHECK(state->rip == kLoadAddress + 0x200);
    CHECK(state->rsi == kLinuxBootParams);
    CHECK(state->cr0 == 0x80000011);
    CHECK(state->cr4 == 0x20);
    CHECK(state->efer == 0x500);
    CHECK(state->rflags == 2);
    CHECK(state->cs.selector == 0x10);
    CHECK(state->cs.long_mode);
    CHECK_FALSE(state->cs.default_32);
    CHECK(state->data.selector == 0x18);
    CHECK(ram.bytes[kLoadAddress] == 'k');
    CHECK(ram.bytes[kLoadAddress + 0xFFF] == 'k');
    CHECK(ram.bytes[kLoadAddress + 0x1000] == 0xEE);
}

TEST_CASE("the selectors with which Linux starts are in its GDT") {
    Ram ram(kRamSize);
    const auto state = boot_file(ram, BzImage().bytes);
    REQUIRE(state);
    CHECK(state->gdt.base == kLinuxGdt);
    CHECK(state->gdt.limit == 31);
    CHECK(ram.get<uint64_t>(kLinuxGdt + 0x10) == 0x00AF9B000000FFFF);
    CHECK(ram.get<uint64_t>(kLinuxGdt + 0x18) == 0x00CF93000000FFFF);
}

// The physical address behind `linear`, as a CPU walks the tables.
uint64_t walk(const Ram& ram, uint64_t cr3, uint64_t linear) {
    const auto entry = [&](uint64_t table, unsigned shift) {
        const auto value = ram.get<uint64_t>((table & ~0xFFFull) + ((linear >> shift) & 0x1FF) * 8);
        CHECK((value & 3) == 3);
        return value;
    };
    const uint64_t directory = entry(entry(entry(cr3, 39), 30), 21);
    CHECK((directory & 0x80) != 0);
    return (directory & ~0x1FFFFFull) + (linear & 0x1FFFFF);
}

TEST_CASE("the first 4 GiB are mapped to themselves") {
    Ram ram(kRamSize);
    const auto state = boot_file(ram, BzImage().bytes);
    REQUIRE(state);
    for (const uint64_t address : {uint64_t{0}, uint64_t{0x1FFFFF}, uint64_t{0x200000}, kLoadAddress,
             kGiB - 1, kGiB, 3 * kGiB + 0x12345, 4 * kGiB - 1})
        CHECK(walk(ram, state->cr3, address) == address);
}

TEST_CASE("boot_params tell command line, initrd, memory map and RSDP, and keep the kernel's header") {
    Ram ram(kRamSize);
    const std::string initrd(5000, 'i');
    REQUIRE(boot_file(ram, BzImage().bytes, "console=ttyS0", initrd, 0xE0000));
    const auto params = kLinuxBootParams;
    CHECK(ram.get<uint32_t>(params + 0x202) == 0x53726448);
    CHECK(ram.get<uint16_t>(params + 0x206) == 0x20F);
    CHECK(ram.get<uint32_t>(params + 0x230) == 0x200000);
    CHECK(ram.get<uint8_t>(params + 0x210) == 0xFF); // a loader without a number of its own
    CHECK(ram.get<uint8_t>(params + 0x1EF) == 0);    // else Linux takes the whole for uninitialised
    CHECK(ram.get<uint64_t>(params + 0x070) == 0xE0000);
    const auto command_line = ram.get<uint32_t>(params + 0x228);
    CHECK(std::string(reinterpret_cast<const char*>(&ram.bytes[command_line])) == "console=ttyS0");
    const auto address = ram.get<uint32_t>(params + 0x218);
    CHECK(ram.get<uint32_t>(params + 0x21C) == initrd.size());
    CHECK(address == kRamSize - 0x2000);
    CHECK(std::memcmp(&ram.bytes[address], initrd.data(), initrd.size()) == 0);
    CHECK(ram.get<uint8_t>(params + 0x1E8) == 4); // entries of the map
    CHECK(ram.get<uint64_t>(params + 0x2D0 + 2 * 20) == 0x100000);
    CHECK(ram.get<uint64_t>(params + 0x2D0 + 2 * 20 + 8) == kRamSize - 0x100000);
    CHECK(ram.get<uint32_t>(params + 0x2D0 + 2 * 20 + 16) == 1);
}

TEST_CASE("an initrd lies below the kernel's limit and above the kernel") {
    Ram ram(kRamSize);
    REQUIRE(boot_file(ram, BzImage().set<uint32_t>(0x22C, 0x17FFFFF).bytes, "", "i"));
    CHECK(ram.get<uint32_t>(kLinuxBootParams + 0x218) == 0x17FF000);
    const size_t room = kRamSize - kLoadAddress - 0x400000;
    CHECK(boot_file(ram, BzImage().bytes, "", std::string(room, 'i')));
    const auto state = boot_file(ram, BzImage().bytes, "", std::string(room + 1, 'i'));
    REQUIRE_FALSE(state);
    CHECK(state.error().message.find("more RAM") != std::string::npos);
}

TEST_CASE("a bzImage that is not 64-bit, is cut short or needs more RAM is refused in words") {
    CHECK(complaint(BzImage().set<uint16_t>(0x236, 0)).find("64-bit") != std::string::npos);
    CHECK(complaint(BzImage().set<uint16_t>(0x206, 0x20B)).find("64-bit") != std::string::npos);
    CHECK(complaint(BzImage().set<uint8_t>(0x211, 0)).find("zImage") != std::string::npos);
    CHECK(complaint(BzImage().set<uint32_t>(0x1F4, 0x1000 / 16 + 1)).find("cut short") != std::string::npos);
    CHECK(complaint(BzImage().set<uint32_t>(0x1F4, 0)).find("no code") != std::string::npos);
    CHECK(complaint(BzImage().set<uint8_t>(0x1F1, 255)).find("cut short") != std::string::npos);
    CHECK(complaint(BzImage().set<uint32_t>(0x260, kRamSize)).find("more RAM") != std::string::npos);
    CHECK(complaint(BzImage().set<uint64_t>(0x258, 0x7000)).find("loaded at") != std::string::npos);
    constexpr auto kHighest = std::numeric_limits<uint64_t>::max();
    CHECK(complaint(BzImage().set<uint64_t>(0x258, kHighest - 0xFFF)).find("loaded at") != std::string::npos);
    CHECK(complaint(BzImage(), std::string(2048, 'x')).find("2047") != std::string::npos);
}

TEST_CASE("a last unit of code that is not whole is taken") {
    BzImage image;
    image.bytes.pop_back();
    Ram ram(kRamSize);
    REQUIRE(boot_file(ram, image.bytes));
    CHECK(ram.bytes[kLoadAddress + 0xFFE] == 'k');
    CHECK(ram.bytes[kLoadAddress + 0xFFF] == 0xEE);
}

TEST_CASE("whatever a bzImage's header says, the loader refuses it or stays within RAM") {
    std::mt19937 random(5);
    Ram ram(kRamSize);
    int refused = 0;
    for (int round = 0; round < 2000; ++round) {
        BzImage image;
        for (int changes = 0; changes < 3; ++changes)
            image.set<uint8_t>(0x1F1 + random() % (kSetupHeaderEnd - 0x1F1), static_cast<uint8_t>(random()));
        image.bytes.resize(random() % 8 == 0 ? random() % (image.bytes.size() + 1) : image.bytes.size());
        if (!boot_file(ram, image.bytes, "a", "initrd")) ++refused;
    }
    CHECK(refused > 100); // the sanitizers look at the rest
    CHECK(refused < 1900);
}

} // namespace
} // namespace liveupdate::vmm::test
