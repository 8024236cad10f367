// Virtio 1.2: 4.2.2 (registers), 3.1.1 (how a device is brought up).
#include "tests/guests/runtime/virtio.hpp"

#include "tests/guests/runtime/memory.hpp"
#include "tests/guests/runtime/options.hpp"

namespace tests::guests {

namespace {

constexpr std::uint32_t kMagic = 0x74726976;
constexpr std::uint32_t kFeaturesOk = 11; // with ACKNOWLEDGE and DRIVER
constexpr std::uint32_t kDriverOk = 15;

} // namespace

bool VirtioDevice::find(std::uint32_t type) {
    const std::uint64_t slots = option_number("mmio_slots", 14);
    const std::uint64_t stride = option_number("mmio_stride", 0x1000);
    address_ = option_number("mmio", 0xd0000000);
    for (std::uint64_t slot = 0; slot < slots; ++slot, address_ += stride) {
        map_page(address_);
        if (reg(0x00) == kMagic && reg(0x08) == type) return true;
    }
    return false;
}

std::uint8_t VirtioDevice::config(std::uint64_t offset) const {
    return *reinterpret_cast<volatile std::uint8_t*>(address_ + 0x100 + offset);
}

bool VirtioDevice::agree(std::uint32_t features) {
    reg(0x70) = 0;
    reg(0x70) = 3;
    reg(0x24) = 0;
    reg(0x20) = features;
    reg(0x24) = 1;
    reg(0x20) = 1;
    reg(0x70) = kFeaturesOk;
    return reg(0x70) == kFeaturesOk;
}

void VirtioDevice::set_queue(std::uint32_t number, std::uint32_t size, const volatile void* descriptors,
    const volatile void* available, const volatile void* used) {
    reg(0x30) = number;
    reg(0x38) = size;
    set_address(0x80, descriptors);
    set_address(0x90, available);
    set_address(0xa0, used);
    reg(0x44) = 1;
}

void VirtioDevice::set_address(std::uint64_t offset, const volatile void* at) {
    reg(offset) = static_cast<std::uint32_t>(gpa_of(at));
    reg(offset + 4) = static_cast<std::uint32_t>(gpa_of(at) >> 32);
}

bool VirtioDevice::go() {
    reg(0x70) = kDriverOk;
    return reg(0x70) == kDriverOk;
}

} // namespace tests::guests
