// A writer of AML, ACPI's byte code (ACPI 6.4, chapter 20), for as much of it as static tables need. Each
// function gives the bytes of one object; objects are joined with `+`.
//
// Preconditions are our own: names and ids are constants of the table builder, never input.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace liveupdate::vmm::aml {

class Bytes {
public:
    Bytes() = default;
    explicit Bytes(std::vector<uint8_t> bytes) : bytes_(std::move(bytes)) {}

    const std::vector<uint8_t>& get() const { return bytes_; }
    Bytes& operator+=(const Bytes& other) {
        bytes_.insert(bytes_.end(), other.bytes_.begin(), other.bytes_.end());
        return *this;
    }
    friend Bytes operator+(Bytes left, const Bytes& right) { return left += right; }

private:
    std::vector<uint8_t> bytes_;
};

Bytes integer(uint64_t value);
Bytes string(std::string_view text);
// The compressed form of an id such as "PNP0501" (ACPI 6.4, 6.1.5): three letters, four hexadecimal digits.
Bytes eisa_id(std::string_view id);
Bytes package(const std::vector<Bytes>& elements); // at most 255

// Names are of 1 to 4 of A-Z, 0-9 and _, shorter ones are filled up with _; a leading \ is the root.
Bytes name(std::string_view name, const Bytes& value);
Bytes device(std::string_view name, const Bytes& body);
Bytes scope(std::string_view name, const Bytes& body);

// Serialized; its body is a list of statements.
Bytes method(std::string_view name, unsigned arguments, const Bytes& body);
// A statement: tells the operating system's driver of a device, found from where the statement stands
// outwards.
Bytes notify(std::string_view device, uint8_t value);

// Resource descriptors (ACPI 6.4, 6.4), to be given to resources() in one.
Bytes io_ports(uint16_t first, uint8_t count);
Bytes isa_interrupt(unsigned irq); // edge-triggered, active high
Bytes memory32(uint32_t base, uint32_t size);
Bytes edge_interrupt(uint32_t gsi); // edge-triggered, active high, not shared; any GSI
Bytes resources(const Bytes& descriptors);

} // namespace liveupdate::vmm::aml
