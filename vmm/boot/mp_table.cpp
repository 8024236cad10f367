#include "vmm/boot/mp_table.hpp"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <span>

namespace liveupdate::vmm {
namespace {

uint8_t checksum(std::span<const uint8_t> bytes) {
    return static_cast<uint8_t>(-std::accumulate(bytes.begin(), bytes.end(), 0u));
}

template <typename T>
void append(std::vector<uint8_t>& bytes, const T& value) {
    const auto* start = reinterpret_cast<const uint8_t*>(&value);
    bytes.insert(bytes.end(), start, start + sizeof value);
}

// Chapter 4 of the specification.
struct [[gnu::packed]] FloatingPointer {
    char signature[4] = {'_', 'M', 'P', '_'};
    uint32_t table = 0;
    uint8_t length = 1; // in units of 16 bytes
    uint8_t revision = 4;
    uint8_t checksum = 0;
    uint8_t features[5]{}; // 0: a configuration table is there, and no PIC mode
};
static_assert(sizeof(FloatingPointer) == 16);

struct [[gnu::packed]] Header {
    char signature[4] = {'P', 'C', 'M', 'P'};
    uint16_t length = 0;
    uint8_t revision = 4;
    uint8_t checksum = 0;
    char oem_id[8] = {'L', 'I', 'V', 'E', 'U', 'P', 'D', 'T'};
    char product_id[12] = {'M', 'A', 'C', 'H', 'I', 'N', 'E', ' ', ' ', ' ', ' ', ' '};
    uint32_t oem_table = 0;
    uint16_t oem_table_size = 0;
    uint16_t entries = 0;
    uint32_t local_apic = kLocalApicAddress;
    uint16_t extended_length = 0;
    uint8_t extended_checksum = 0;
    uint8_t reserved = 0;
};
static_assert(sizeof(Header) == 44);

constexpr uint8_t kApicVersion = 0x14; // as KVM's local APIC says of itself
constexpr uint8_t kIsaBus = 0;
constexpr uint8_t kAllApics = 0xFF;

struct [[gnu::packed]] Processor {
    uint8_t type = 0;
    uint8_t apic_id;
    uint8_t apic_version = kApicVersion;
    uint8_t flags; // 1: usable, 2: the one that starts
    uint32_t signature = 0x600;
    uint32_t features = 0x201; // an FPU and an APIC
    uint64_t reserved = 0;
};
struct [[gnu::packed]] Bus {
    uint8_t type = 1;
    uint8_t id = kIsaBus;
    char name[6] = {'I', 'S', 'A', ' ', ' ', ' '};
};
struct [[gnu::packed]] IoApic {
    uint8_t type = 2;
    uint8_t id = kIoApicId;
    uint8_t version = 0x11;
    uint8_t flags = 1; // usable
    uint32_t address = kIoApicAddress;
};
struct [[gnu::packed]] Interrupt {
    uint8_t type;
    uint8_t kind;   // 0: vectored, 1: NMI, 3: from the PICs
    uint16_t flags; // polarity in bits 0 and 1, trigger in 2 and 3; 0: as the bus
    uint8_t bus = kIsaBus;
    uint8_t irq;
    uint8_t apic;
    uint8_t pin;
};
static_assert(sizeof(Processor) == 20 && sizeof(Bus) == 8 && sizeof(IoApic) == 8 && sizeof(Interrupt) == 8);
constexpr uint8_t kIoInterrupt = 3, kLocalInterrupt = 4;
constexpr uint8_t kVectored = 0, kNmi = 1, kExternal = 3;
constexpr uint16_t kAsTheBus = 0, kActiveHighEdge = 0x5, kActiveHighLevel = 0xD;

class Entries {
public:
    template <typename T>
    void add(const T& entry) {
        append(bytes_, entry);
        ++count_;
    }
    const std::vector<uint8_t>& bytes() const { return bytes_; }
    uint16_t count() const { return count_; }

private:
    std::vector<uint8_t> bytes_;
    uint16_t count_ = 0;
};

Interrupt io_interrupt(uint8_t irq, uint8_t pin, uint16_t flags) {
    return {
        .type = kIoInterrupt, .kind = kVectored, .flags = flags, .irq = irq, .apic = kIoApicId, .pin = pin};
}

void add_interrupts(const Platform& platform, Entries& entries) {
    for (uint8_t irq = 0; irq < kIsaIrqs; ++irq)
        if (irq != kCascadeIrq)
            entries.add(io_interrupt(
                irq, irq == kTimerIrq ? kTimerGsi : irq, irq == platform.sci ? kActiveHighLevel : kAsTheBus));
    // No bus has these numbers; as ISA's they are what a device on the kernel's command line is given.
    for (uint8_t gsi = kIsaIrqs; gsi < kIoApicPins; ++gsi)
        entries.add(io_interrupt(gsi, gsi, kActiveHighEdge));
    entries.add(Interrupt{.type = kLocalInterrupt,
        .kind = kExternal,
        .flags = kAsTheBus,
        .irq = 0,
        .apic = kAllApics,
        .pin = 0});
    entries.add(Interrupt{
        .type = kLocalInterrupt, .kind = kNmi, .flags = kAsTheBus, .irq = 0, .apic = kAllApics, .pin = 1});
}

} // namespace

std::vector<uint8_t> mp_table(const Platform& platform, uint32_t base) {
    constexpr uint8_t kUsable = 1, kStarts = 2;
    Entries entries;
    for (unsigned i = 0; i < platform.vcpus; ++i)
        entries.add(Processor{.apic_id = static_cast<uint8_t>(i),
            .flags = static_cast<uint8_t>(i == 0 ? kUsable | kStarts : kUsable)});
    entries.add(Bus{});
    entries.add(IoApic{});
    add_interrupts(platform, entries);

    Header header;
    header.length = static_cast<uint16_t>(sizeof header + entries.bytes().size());
    header.entries = entries.count();
    std::vector<uint8_t> table;
    append(table, header);
    table.insert(table.end(), entries.bytes().begin(), entries.bytes().end());
    table[offsetof(Header, checksum)] = checksum(table);

    FloatingPointer pointer;
    pointer.table = base + static_cast<uint32_t>(sizeof pointer);
    std::vector<uint8_t> bytes;
    append(bytes, pointer);
    bytes[offsetof(FloatingPointer, checksum)] = checksum(bytes);
    bytes.insert(bytes.end(), table.begin(), table.end());
    return bytes;
}

} // namespace liveupdate::vmm
