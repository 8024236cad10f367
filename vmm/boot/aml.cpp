#include "vmm/boot/aml.hpp"

#include <cassert>
#include <initializer_list>

namespace liveupdate::vmm::aml {
namespace {

// ACPI 6.4, section 20.3, "AML Byte Stream Byte Values"
constexpr uint8_t kZero = 0x00, kOne = 0x01, kByte = 0x0A, kWord = 0x0B, kDword = 0x0C, kString = 0x0D,
                  kQword = 0x0E, kName = 0x08, kScope = 0x10, kBuffer = 0x11, kPackage = 0x12, kMethod = 0x14,
                  kNotify = 0x86;
constexpr uint8_t kExtended = 0x5B, kDevice = 0x82;
constexpr size_t kSegment = 4; // characters of a name

Bytes of(std::initializer_list<uint8_t> bytes) {
    return Bytes(std::vector<uint8_t>(bytes));
}

Bytes little_endian(uint64_t value, size_t size) {
    std::vector<uint8_t> bytes;
    for (size_t i = 0; i < size; ++i)
        bytes.push_back(static_cast<uint8_t>(value >> (8 * i)));
    return Bytes(std::move(bytes));
}

// PkgLength (20.2.4) counts itself: one byte up to 63, else the low four bits in a lead byte that tells how
// many bytes follow.
Bytes with_length(const Bytes& body) {
    const size_t size = body.get().size();
    if (size + 1 < 0x40) return of({static_cast<uint8_t>(size + 1)}) + body;
    size_t extra = 1;
    while (size + 1 + extra >= size_t{1} << (4 + 8 * extra))
        ++extra;
    assert(extra <= 3);
    const size_t length = size + 1 + extra;
    const auto lead = static_cast<uint8_t>(extra << 6 | (length & 0xF));
    return of({lead}) + little_endian(length >> 4, extra) + body;
}

Bytes path(std::string_view name) {
    std::vector<uint8_t> bytes;
    if (name.starts_with('\\')) {
        bytes.push_back('\\');
        name.remove_prefix(1);
    }
    assert(!name.empty() && name.size() <= kSegment);
    bytes.insert(bytes.end(), name.begin(), name.end());
    bytes.insert(bytes.end(), kSegment - name.size(), '_');
    return Bytes(std::move(bytes));
}

uint8_t hexadecimal(char digit) {
    return static_cast<uint8_t>(digit <= '9' ? digit - '0' : digit - 'A' + 10);
}

} // namespace

Bytes integer(uint64_t value) {
    if (value <= 1) return of({value == 0 ? kZero : kOne});
    if (value <= UINT8_MAX) return of({kByte}) + little_endian(value, 1);
    if (value <= UINT16_MAX) return of({kWord}) + little_endian(value, 2);
    if (value <= UINT32_MAX) return of({kDword}) + little_endian(value, 4);
    return of({kQword}) + little_endian(value, 8);
}

Bytes string(std::string_view text) {
    std::vector<uint8_t> bytes{kString};
    bytes.insert(bytes.end(), text.begin(), text.end());
    bytes.push_back(0);
    return Bytes(std::move(bytes));
}

Bytes eisa_id(std::string_view id) {
    assert(id.size() == 7);
    uint32_t letters = 0;
    for (const char c : id.substr(0, 3))
        letters = letters << 5 | static_cast<uint32_t>(c - '@');
    uint32_t number = 0;
    for (const char c : id.substr(3))
        number = number << 4 | hexadecimal(c);
    const uint32_t big_endian = letters << 16 | number;
    return of({kDword, static_cast<uint8_t>(big_endian >> 24), static_cast<uint8_t>(big_endian >> 16),
        static_cast<uint8_t>(big_endian >> 8), static_cast<uint8_t>(big_endian)});
}

Bytes package(const std::vector<Bytes>& elements) {
    assert(elements.size() <= UINT8_MAX);
    Bytes body = of({static_cast<uint8_t>(elements.size())});
    for (const Bytes& element : elements)
        body += element;
    return of({kPackage}) + with_length(body);
}

Bytes name(std::string_view name, const Bytes& value) {
    return of({kName}) + path(name) + value;
}

Bytes device(std::string_view name, const Bytes& body) {
    return of({kExtended, kDevice}) + with_length(path(name) + body);
}

Bytes scope(std::string_view name, const Bytes& body) {
    return of({kScope}) + with_length(path(name) + body);
}

Bytes method(std::string_view name, unsigned arguments, const Bytes& body) {
    constexpr unsigned kSerialized = 8;
    assert(arguments <= 7);
    return of({kMethod}) +
           with_length(path(name) + of({static_cast<uint8_t>(arguments | kSerialized)}) + body);
}

Bytes notify(std::string_view device, uint8_t value) {
    return of({kNotify}) + path(device) + integer(value);
}

Bytes io_ports(uint16_t first, uint8_t count) {
    constexpr uint8_t kIoPort = 0x47, kDecode16 = 0x01, kAlignment = 0x01;
    return of({kIoPort, kDecode16}) + little_endian(first, 2) + little_endian(first, 2) +
           of({kAlignment, count});
}

Bytes isa_interrupt(unsigned irq) {
    constexpr uint8_t kIrqNoFlags = 0x22;
    assert(irq < 16);
    return of({kIrqNoFlags}) + little_endian(uint64_t{1} << irq, 2);
}

Bytes memory32(uint32_t base, uint32_t size) {
    constexpr uint8_t kMemory32Fixed = 0x86, kReadWrite = 0x01;
    return of({kMemory32Fixed, 9, 0, kReadWrite}) + little_endian(base, 4) + little_endian(size, 4);
}

Bytes edge_interrupt(uint32_t gsi) {
    constexpr uint8_t kExtendedInterrupt = 0x89, kConsumer = 0x01, kEdge = 0x02;
    return of({kExtendedInterrupt, 6, 0, kConsumer | kEdge, 1}) + little_endian(gsi, 4);
}

Bytes resources(const Bytes& descriptors) {
    constexpr uint8_t kEndTag = 0x79, kChecksumUnused = 0x00;
    const Bytes all = descriptors + of({kEndTag, kChecksumUnused});
    return of({kBuffer}) + with_length(integer(all.get().size()) + all);
}

} // namespace liveupdate::vmm::aml
