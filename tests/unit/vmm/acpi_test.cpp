#include "vmm/boot/acpi.hpp"

#include <doctest/doctest.h>

#include <cstring>
#include <map>
#include <numeric>
#include <string>

#include "handoff/base/fd.hpp"
#include "tests/support/command.hpp"
#include "tests/support/temporary_folder.hpp"

namespace liveupdate::vmm::test {
namespace {

constexpr uint64_t kBase = 0xE0000;

Platform platform(unsigned vcpus, unsigned devices) {
    Platform p;
    p.vcpus = vcpus;
    p.pm_event_port = 0x600;
    p.pm_control_port = 0x604;
    p.pm_timer_port = 0x608;
    p.soft_off_type = 5;
    p.reset_port = 0xCF9;
    p.reset_value = 6;
    p.serial_port = 0x3F8;
    p.serial_irq = 4;
    p.rtc_port = 0x70;
    p.rtc_irq = 8;
    p.rtc_century = 0x32;
    p.generation_id = 0x1'000EF000;
    p.generation_gsi = 15;
    for (uint32_t i = 0; i < devices; ++i)
        p.virtio.push_back({0xD0000000 + i * 0x1000, 0x200, 16 + i});
    return p;
}

template <typename T>
T get(const std::vector<uint8_t>& bytes, size_t offset) {
    T value{};
    REQUIRE(offset + sizeof value <= bytes.size());
    std::memcpy(&value, bytes.data() + offset, sizeof value);
    return value;
}

uint8_t sum(const std::vector<uint8_t>& bytes) {
    return static_cast<uint8_t>(std::accumulate(bytes.begin(), bytes.end(), 0u));
}

std::vector<uint8_t> part(const std::vector<uint8_t>& all, uint64_t address, size_t size) {
    REQUIRE(address >= kBase);
    REQUIRE(address - kBase + size <= all.size());
    const auto start = all.begin() + static_cast<std::ptrdiff_t>(address - kBase);
    return {start, start + static_cast<std::ptrdiff_t>(size)};
}

// The tables by signature, found as an operating system finds them; sums are checked on the way.
std::map<std::string, std::vector<uint8_t>> find_tables(const std::vector<uint8_t>& all) {
    std::map<std::string, std::vector<uint8_t>> tables;
    const auto take = [&](uint64_t address) {
        const auto header = part(all, address, 8);
        const std::string signature(header.begin(), header.begin() + 4);
        tables[signature] = part(all, address, get<uint32_t>(header, 4));
        if (signature != "FACS") CHECK_MESSAGE(sum(tables[signature]) == 0, signature);
        return signature;
    };
    CHECK(std::memcmp(all.data(), "RSD PTR ", 8) == 0);
    CHECK(sum(part(all, kBase, 20)) == 0);
    CHECK(sum(part(all, kBase, 36)) == 0);
    const auto xsdt_at = get<uint64_t>(all, 24);
    REQUIRE(take(xsdt_at) == "XSDT");
    const auto xsdt = tables["XSDT"];
    for (size_t at = 36; at < xsdt.size(); at += 8)
        take(get<uint64_t>(xsdt, at));
    const auto facs_at = get<uint32_t>(tables["FACP"], 36);
    CHECK(facs_at % 64 == 0);
    CHECK(take(facs_at) == "FACS");
    CHECK(take(get<uint32_t>(tables["FACP"], 40)) == "DSDT");
    CHECK(get<uint64_t>(tables["FACP"], 140) == get<uint32_t>(tables["FACP"], 40));
    return tables;
}

TEST_CASE("every ACPI table is found from the root and adds up") {
    for (const unsigned vcpus : {1u, 2u, 64u, 255u}) {
        const auto tables = find_tables(acpi_tables(platform(vcpus, 14), kBase));
        CHECK(tables.size() == 5);
    }
    CHECK(acpi_tables(platform(255, 14), kBase).size() < 0xF000);
}

TEST_CASE("the FADT tells where ACPI's registers are, and that there is no other mode than ACPI's") {
    const auto fadt = find_tables(acpi_tables(platform(1, 0), kBase))["FACP"];
    REQUIRE(fadt.size() == 276);
    CHECK(get<uint16_t>(fadt, 46) == 9);     // SCI_INT
    CHECK(get<uint32_t>(fadt, 48) == 0);     // SMI_CMD
    CHECK(get<uint32_t>(fadt, 56) == 0x600); // PM1a_EVT_BLK
    CHECK(get<uint32_t>(fadt, 64) == 0x604); // PM1a_CNT_BLK
    CHECK(get<uint32_t>(fadt, 76) == 0x608); // PM_TMR_BLK
    CHECK(get<uint8_t>(fadt, 108) == 0x32);  // CENTURY
    const auto flags = get<uint32_t>(fadt, 112);
    CHECK((flags & (1 << 4)) == 0);  // a fixed power button
    CHECK((flags & (1 << 8)) != 0);  // a timer of 32 bits
    CHECK((flags & (1 << 10)) != 0); // a reset register
    CHECK((flags & (1 << 20)) == 0); // not hardware-reduced
    CHECK(get<uint64_t>(fadt, 120) == 0xCF9);
    CHECK(get<uint8_t>(fadt, 128) == 6);
}

TEST_CASE("the MADT has each CPU, the I/O APIC, and the two interrupts that are wired as no other") {
    const auto madt = find_tables(acpi_tables(platform(3, 0), kBase))["APIC"];
    CHECK(get<uint32_t>(madt, 36) == 0xFEE00000);
    std::vector<uint8_t> types;
    for (size_t at = 44; at < madt.size(); at += get<uint8_t>(madt, at + 1))
        types.push_back(get<uint8_t>(madt, at));
    CHECK(types == std::vector<uint8_t>{0, 0, 0, 1, 2, 2, 4});
    const size_t overrides = 44 + 3 * 8 + 12;
    CHECK(get<uint8_t>(madt, 44 + 2 * 8 + 3) == 2); // the APIC id of CPU 2
    CHECK(get<uint8_t>(madt, overrides + 3) == 0);
    CHECK(get<uint32_t>(madt, overrides + 4) == 2);
    CHECK(get<uint8_t>(madt, overrides + 13) == 9);
    CHECK(get<uint32_t>(madt, overrides + 14) == 9);
    CHECK(get<uint16_t>(madt, overrides + 18) == 0xD); // level, active high
}

TEST_CASE("AML lengths of one, two and three bytes are written as the specification says") {
    const auto length_of = [](size_t body) { // of a scope: its opcode, the length, four bytes of name
        const auto bytes = aml::scope("ABCD", aml::Bytes(std::vector<uint8_t>(body, 0))).get();
        return std::vector<uint8_t>(bytes.begin() + 1, bytes.begin() + 4);
    };
    CHECK(length_of(0)[0] == 5);
    CHECK(length_of(58)[0] == 63);
    CHECK(length_of(59) == std::vector<uint8_t>{0x41, 0x04, 'A'});    // 65
    CHECK(length_of(4089) == std::vector<uint8_t>{0x4F, 0xFF, 'A'});  // 4095
    CHECK(length_of(4090) == std::vector<uint8_t>{0x81, 0x00, 0x01}); // 4097
}

TEST_CASE("AML integers take as few bytes as they can") {
    CHECK(aml::integer(0).get() == std::vector<uint8_t>{0});
    CHECK(aml::integer(1).get() == std::vector<uint8_t>{1});
    CHECK(aml::integer(0x42).get() == std::vector<uint8_t>{0x0A, 0x42});
    CHECK(aml::integer(0x1234).get() == std::vector<uint8_t>{0x0B, 0x34, 0x12});
    CHECK(aml::integer(0x12345678).get() == std::vector<uint8_t>{0x0C, 0x78, 0x56, 0x34, 0x12});
    CHECK(aml::integer(0x123456789).get().size() == 9);
    CHECK(aml::eisa_id("PNP0501").get() == std::vector<uint8_t>{0x0C, 0x41, 0xD0, 0x05, 0x01});
}

bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

// Runs iasl, ACPICA's compiler; its words, which must hold no complaint.
std::string iasl(const std::vector<std::string>& arguments) {
    std::vector<std::string> command{"iasl"};
    command.insert(command.end(), arguments.begin(), arguments.end());
    const auto result = liveupdate::tests::run_command(command);
    const std::string words = result.out + result.err;
    CHECK_MESSAGE(result.status == 0, words);
    for (const char* complaint : {"Invalid", "Error ", "Warning ", "ncorrect", "nknown", "Could not"})
        CHECK_MESSAGE(!has(words, complaint), words);
    return words;
}

TEST_CASE("ACPICA's own tools read every table without complaint") {
    if (liveupdate::tests::run_command({"iasl", "-v"}).status != 0) {
        std::printf("SKIPPED: there is no iasl; ./dev setup --all installs it\n");
        return;
    }
    const liveupdate::tests::TemporaryFolder folder;
    for (const auto& [name, table] : find_tables(acpi_tables(platform(20, 14), kBase))) {
        CAPTURE(name);
        const std::string file = folder.at(name + ".dat"), text = folder.at(name + ".dsl");
        REQUIRE(fd::write_file_atomically(file, std::string(table.begin(), table.end())));
        iasl({"-d", file});
        const auto source = fd::read_file(text);
        REQUIRE(source);
        for (const char* complaint : {"Invalid", "ncorrect", "nknown", "****"})
            CHECK_MESSAGE(!has(*source, complaint), *source);
        if (name != "DSDT") continue;
        CHECK(has(*source, "Device (CP13)"));
        CHECK(has(*source, "\"LNRO0005\""));
        CHECK(has(*source, "Memory32Fixed (ReadWrite,\n                    0xD000D000,"));
        CHECK(has(*source, "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive"));
        CHECK(has(*source, "EisaId (\"PNP0B00\")"));
        CHECK(has(*source, "\"VM_Gen_Counter\""));
        CHECK(has(*source,
            "Name (ADDR, Package (0x02)\n            {\n                0x000EF000, \n                One"));
        CHECK(has(*source, "Method (_EVT, 1, Serialized)"));
        CHECK(has(*source, "Notify (VGEN, 0x80)"));
        CHECK(has(iasl({"-vw", "3141", text}), "0 Errors, 0 Warnings"));
    }
}

} // namespace
} // namespace liveupdate::vmm::test
