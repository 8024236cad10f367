// Where virtio devices lie in the machine: fixed for ever, because a guest keeps its devices across updates
// and is told of them once, at its boot.
#pragma once

#include <array>
#include <cstdint>

namespace liveupdate::vmm::virtio {

inline constexpr uint32_t kMaxDevices = 14;
inline constexpr uint64_t kMmioBase = 0xd0000000; // in the PCI hole
inline constexpr uint64_t kMmioStride = 0x1000;
inline constexpr uint64_t kMmioSize = 0x200; // registers and configuration space

// Of the device in `slot`, 0 to kMaxDevices - 1.
constexpr uint64_t mmio_address(uint32_t slot) {
    return kMmioBase + slot * kMmioStride;
}

// Edge-triggered, active high. First the I/O APIC's pins that no PC device has, then what is left of the
// ISA interrupts beside PIT, keyboard, COM ports, RTC, ACPI, PS/2 mouse's neighbours and IDE.
inline constexpr std::array<uint32_t, kMaxDevices> kGsis{16, 17, 18, 19, 20, 21, 22, 23, 5, 6, 7, 10, 11, 12};

} // namespace liveupdate::vmm::virtio
