#include "vmm/boot/acpi.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>
#include <string_view>

namespace liveupdate::vmm {
namespace {

constexpr size_t kTableAlignment = 16;
constexpr size_t kFacsAlignment = 64;

void copy_text(std::span<char> field, std::string_view text) {
    std::copy_n(text.begin(), std::min(text.size(), field.size()), field.begin());
}

// The byte that makes all of them add up to 0.
uint8_t checksum(std::span<const uint8_t> bytes) {
    return static_cast<uint8_t>(-std::accumulate(bytes.begin(), bytes.end(), 0u));
}

template <typename T>
void append(std::vector<uint8_t>& bytes, const T& value) {
    const auto* start = reinterpret_cast<const uint8_t*>(&value);
    bytes.insert(bytes.end(), start, start + sizeof value);
}

// 5.2.6
struct [[gnu::packed]] TableHeader {
    char signature[4];
    uint32_t length = 0;
    uint8_t revision = 0;
    uint8_t checksum = 0;
    char oem_id[6];
    char oem_table_id[8];
    uint32_t oem_revision = 1;
    char creator_id[4];
    uint32_t creator_revision = 1;
};
static_assert(sizeof(TableHeader) == 36);

std::vector<uint8_t> table(std::string_view signature, uint8_t revision, std::span<const uint8_t> body) {
    TableHeader header{};
    copy_text(header.signature, signature);
    header.length = static_cast<uint32_t>(sizeof header + body.size());
    header.revision = revision;
    copy_text(header.oem_id, "LVUPDT");
    copy_text(header.oem_table_id, "LUMACHIN");
    copy_text(header.creator_id, "LVUP");
    header.oem_revision = header.creator_revision = 1;
    std::vector<uint8_t> bytes;
    append(bytes, header);
    bytes.insert(bytes.end(), body.begin(), body.end());
    bytes[offsetof(TableHeader, checksum)] = checksum(bytes);
    return bytes;
}

// 5.2.3.2, Generic Address Structure
struct [[gnu::packed]] GenericAddress {
    uint8_t space = 0;
    uint8_t bits = 0;
    uint8_t offset = 0;
    uint8_t access = 0;
    uint64_t address = 0;
};

GenericAddress port(uint16_t number, uint8_t bytes) {
    constexpr uint8_t kSystemIo = 1;
    // Access sizes are 1 for a byte, 2 for a word, 3 for a dword.
    const auto access = static_cast<uint8_t>(bytes == 4 ? 3 : bytes);
    return {kSystemIo, static_cast<uint8_t>(bytes * 8), 0, access, number};
}

// 5.2.9, behind the header. Fields that are not named in fadt() are 0: there is no such thing.
struct [[gnu::packed]] Fadt {
    uint32_t facs = 0;
    uint32_t dsdt = 0;
    uint8_t reserved0 = 0;
    uint8_t preferred_profile = 0;
    uint16_t sci_irq = 0;
    uint32_t smi_command = 0;
    uint8_t acpi_enable = 0;
    uint8_t acpi_disable = 0;
    uint8_t s4bios_request = 0;
    uint8_t pstate_control = 0;
    uint32_t pm1a_event = 0;
    uint32_t pm1b_event = 0;
    uint32_t pm1a_control = 0;
    uint32_t pm1b_control = 0;
    uint32_t pm2_control = 0;
    uint32_t pm_timer = 0;
    uint32_t gpe0 = 0;
    uint32_t gpe1 = 0;
    uint8_t pm1_event_length = 4;
    uint8_t pm1_control_length = 2;
    uint8_t pm2_control_length = 0;
    uint8_t pm_timer_length = 4;
    uint8_t gpe0_length = 0;
    uint8_t gpe1_length = 0;
    uint8_t gpe1_base = 0;
    uint8_t cstate_control = 0;
    uint16_t c2_latency = 101;  // above 100: no C2
    uint16_t c3_latency = 1001; // above 1000: no C3
    uint16_t flush_size = 0;
    uint16_t flush_stride = 0;
    uint8_t duty_offset = 0;
    uint8_t duty_width = 0;
    uint8_t rtc_day_alarm = 0;
    uint8_t rtc_month_alarm = 0;
    uint8_t rtc_century = 0;
    uint16_t boot_flags = 0;
    uint8_t reserved1 = 0;
    uint32_t flags = 0;
    GenericAddress reset_register;
    uint8_t reset_value = 0;
    uint16_t arm_boot_flags = 0;
    uint8_t minor_version = 0;
    uint64_t x_facs = 0;
    uint64_t x_dsdt = 0;
    GenericAddress x_pm1a_event, x_pm1b_event, x_pm1a_control, x_pm1b_control, x_pm2_control, x_pm_timer,
        x_gpe0, x_gpe1;
    GenericAddress sleep_control, sleep_status;
    uint64_t hypervisor_id = 0;
};
static_assert(sizeof(TableHeader) + sizeof(Fadt) == 276);
constexpr uint8_t kFadtRevision = 6, kFadtMinor = 4;

std::vector<uint8_t> fadt(const Platform& platform, uint32_t facs, uint32_t dsdt) {
    // 5.2.9, "Fixed ACPI Description Table Fixed Feature Flags"
    constexpr uint32_t kWbinvd = 1 << 0, kProcC1 = 1 << 2, kNoFixedSleepButton = 1 << 5,
                       kRtcWakesNobody = 1 << 6, kTimer32 = 1 << 8, kResetRegister = 1 << 10;
    // 5.2.9.3, "IA-PC Boot Architecture Flags"; without bit 1 there is no keyboard controller to look for.
    constexpr uint16_t kLegacyDevices = 1 << 0, kNoVga = 1 << 2;
    Fadt body;
    body.facs = facs;
    body.dsdt = dsdt;
    body.x_dsdt = dsdt;
    body.sci_irq = platform.sci;
    body.pm1a_event = platform.pm_event_port;
    body.pm1a_control = platform.pm_control_port;
    body.pm_timer = platform.pm_timer_port;
    body.x_pm1a_event = port(platform.pm_event_port, 4);
    // Two registers of two bytes each, which is how they are to be accessed.
    body.x_pm1a_event.access = 2;
    body.x_pm1a_control = port(platform.pm_control_port, 2);
    body.x_pm_timer = port(platform.pm_timer_port, 4);
    body.rtc_century = platform.rtc_century;
    body.boot_flags = kLegacyDevices | kNoVga;
    body.flags = kWbinvd | kProcC1 | kNoFixedSleepButton | kRtcWakesNobody | kTimer32 | kResetRegister;
    body.reset_register = port(platform.reset_port, 1);
    body.reset_value = platform.reset_value;
    body.minor_version = kFadtMinor;
    std::vector<uint8_t> bytes;
    append(bytes, body);
    return table("FACP", kFadtRevision, bytes);
}

// 5.2.10. No checksum; the global lock in it is never taken, since nothing beside the guest would take it.
std::vector<uint8_t> facs() {
    constexpr uint32_t kLength = 64;
    constexpr size_t kVersionAt = 32;
    std::vector<uint8_t> bytes{'F', 'A', 'C', 'S'};
    append(bytes, kLength);
    bytes.resize(kLength);
    bytes[kVersionAt] = 2;
    return bytes;
}

// 5.2.12, entries of the MADT
struct [[gnu::packed]] MadtLocalApic {
    uint8_t type = 0, length = 8;
    uint8_t processor_uid;
    uint8_t apic_id;
    uint32_t flags = 1; // enabled
};
struct [[gnu::packed]] MadtIoApic {
    uint8_t type = 1, length = 12;
    uint8_t id = kIoApicId;
    uint8_t reserved = 0;
    uint32_t address = kIoApicAddress;
    uint32_t first_gsi = 0;
};
struct [[gnu::packed]] MadtOverride {
    uint8_t type = 2, length = 10;
    uint8_t bus = 0; // ISA
    uint8_t irq;
    uint32_t gsi;
    uint16_t flags;
};
struct [[gnu::packed]] MadtLocalNmi {
    uint8_t type = 4, length = 6;
    uint8_t processor_uid = 0xFF; // all
    uint16_t flags = 0;
    uint8_t lint = 1;
};
constexpr uint8_t kMadtRevision = 5;
constexpr uint16_t kAsTheBus = 0, kActiveHighLevel = 0xD; // table 5.26, "MPS INTI Flags"

std::vector<uint8_t> madt(const Platform& platform) {
    constexpr uint32_t kHasPics = 1;
    std::vector<uint8_t> bytes;
    append(bytes, kLocalApicAddress);
    append(bytes, kHasPics);
    for (unsigned i = 0; i < platform.vcpus; ++i)
        append(bytes,
            MadtLocalApic{.processor_uid = static_cast<uint8_t>(i), .apic_id = static_cast<uint8_t>(i)});
    append(bytes, MadtIoApic{});
    append(bytes, MadtOverride{.irq = kTimerIrq, .gsi = kTimerGsi, .flags = kAsTheBus});
    append(bytes, MadtOverride{.irq = platform.sci, .gsi = platform.sci, .flags = kActiveHighLevel});
    append(bytes, MadtLocalNmi{});
    return table("APIC", kMadtRevision, bytes);
}

std::vector<uint8_t> xsdt(std::initializer_list<uint64_t> tables) {
    std::vector<uint8_t> bytes;
    for (const uint64_t address : tables)
        append(bytes, address);
    return table("XSDT", 1, bytes);
}

// 5.2.5.3
struct [[gnu::packed]] Rsdp {
    char signature[8];
    uint8_t checksum = 0; // of the first 20 bytes
    char oem_id[6];
    uint8_t revision = 2;
    uint32_t rsdt = 0;
    uint32_t length = 36;
    uint64_t xsdt = 0;
    uint8_t extended_checksum = 0;
    uint8_t reserved[3]{};
};
static_assert(sizeof(Rsdp) == 36);
constexpr size_t kRsdpFirstPart = 20;

std::vector<uint8_t> rsdp(uint64_t xsdt) {
    Rsdp value{};
    copy_text(value.signature, "RSD PTR ");
    copy_text(value.oem_id, "LVUPDT");
    value.xsdt = xsdt;
    std::vector<uint8_t> bytes;
    append(bytes, value);
    bytes[offsetof(Rsdp, checksum)] = checksum(std::span(bytes).first(kRsdpFirstPart));
    bytes[offsetof(Rsdp, extended_checksum)] = checksum(bytes);
    return bytes;
}

// "VR03": two letters and a number of two hexadecimal digits.
std::string numbered(std::string_view letters, size_t number) {
    constexpr std::string_view kDigits = "0123456789ABCDEF";
    return std::string(letters) + kDigits[number / 16 % 16] + kDigits[number % 16];
}

aml::Bytes processors(unsigned vcpus) {
    aml::Bytes all;
    for (unsigned i = 0; i < vcpus; ++i)
        all += aml::device(numbered("CP", i),
            aml::name("_HID", aml::string("ACPI0007")) + aml::name("_UID", aml::integer(i)));
    return all;
}

aml::Bytes virtio_devices(const std::vector<PlatformMmioDevice>& devices) {
    aml::Bytes all;
    for (size_t i = 0; i < devices.size(); ++i)
        all += aml::device(numbered("VR", i),
            aml::name("_HID", aml::string("LNRO0005")) + aml::name("_UID", aml::integer(i)) +
                aml::name("_CCA", aml::integer(1)) + // DMA sees the CPUs' caches
                aml::name("_CRS", aml::resources(aml::memory32(devices[i].address, devices[i].size) +
                                                 aml::edge_interrupt(devices[i].gsi))));
    return all;
}

// The device that tells of a new generation, and the one whose interrupt makes ACPI tell of it (5.6.9,
// "Interrupt- signaled ACPI events"). The specification's id is longer than ids may be; the shorter one came
// later.
aml::Bytes generation(const Platform& p) {
    if (p.generation_id == 0) return {};
    constexpr uint8_t kChanged = 0x80;
    const auto half = [&](unsigned shift) { return aml::integer(p.generation_id >> shift & 0xffffffff); };
    return aml::device("VGEN",
               aml::name("_HID", aml::string("LVUP0001")) +
                   aml::name("_CID", aml::package({aml::string("VM_Gen_Counter"), aml::string("VMGENCTR")})) +
                   aml::name("_DDN", aml::string("VM_Gen_Counter")) +
                   aml::name("ADDR", aml::package({half(0), half(32)}))) +
           aml::device("GED", aml::name("_HID", aml::string("ACPI0013")) +
                                  aml::name("_UID", aml::integer(0)) +
                                  aml::name("_CRS", aml::resources(aml::edge_interrupt(p.generation_gsi))) +
                                  aml::method("_EVT", 1, aml::notify("VGEN", kChanged)));
}

// Builds the piece: each table knows its address when it is put down.
class Layout {
public:
    explicit Layout(uint64_t base) : base_(base) {}

    uint64_t put(std::span<const uint8_t> bytes, size_t alignment = kTableAlignment) {
        const uint64_t address = (base_ + bytes_.size() + alignment - 1) / alignment * alignment;
        bytes_.resize(address - base_);
        bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
        return address;
    }
    std::vector<uint8_t>& bytes() { return bytes_; }

private:
    uint64_t base_;
    std::vector<uint8_t> bytes_;
};

} // namespace

aml::Bytes dsdt_body(const Platform& platform) {
    const auto& p = platform;
    const aml::Bytes serial = aml::device(
        "COM1", aml::name("_HID", aml::eisa_id("PNP0501")) + aml::name("_UID", aml::integer(1)) +
                    aml::name("_CRS",
                        aml::resources(aml::io_ports(p.serial_port, 8) + aml::isa_interrupt(p.serial_irq))));
    const aml::Bytes rtc = aml::device("RTC",
        aml::name("_HID", aml::eisa_id("PNP0B00")) +
            aml::name("_CRS", aml::resources(aml::io_ports(p.rtc_port, 2) + aml::isa_interrupt(p.rtc_irq))));
    const aml::Bytes soft_off = aml::package(
        {aml::integer(p.soft_off_type), aml::integer(p.soft_off_type), aml::integer(0), aml::integer(0)});
    return aml::scope(
               "\\_SB", processors(p.vcpus) + virtio_devices(p.virtio) + serial + rtc + generation(p)) +
           aml::name("\\_S5", soft_off);
}

std::vector<uint8_t> acpi_tables(const Platform& platform, uint64_t base) {
    constexpr uint8_t kDsdtRevision = 2; // integers have 64 bits
    Layout layout(base);
    layout.put(rsdp(0)); // its place
    const uint64_t facs_at = layout.put(facs(), kFacsAlignment);
    const uint64_t dsdt_at = layout.put(table("DSDT", kDsdtRevision, dsdt_body(platform).get()));
    const uint64_t fadt_at =
        layout.put(fadt(platform, static_cast<uint32_t>(facs_at), static_cast<uint32_t>(dsdt_at)));
    const uint64_t madt_at = layout.put(madt(platform));
    const uint64_t xsdt_at = layout.put(xsdt({fadt_at, madt_at}));
    const auto root = rsdp(xsdt_at);
    std::copy(root.begin(), root.end(), layout.bytes().begin());
    return std::move(layout.bytes());
}

} // namespace liveupdate::vmm
