// What the firmware's tables say of a machine, as a plain value: the builders of ACPI and MP tables know no
// device, and the machine that has the devices knows no table.
#pragma once

#include <cstdint>
#include <vector>

namespace liveupdate::vmm {

// A virtio-mmio transport (virtio 1.2, section 4.2). Its interrupt is edge-triggered and active high.
struct PlatformMmioDevice {
    uint32_t address;
    uint32_t size;
    uint32_t gsi;
};

struct Platform {
    unsigned vcpus = 1; // 1 to 255; vCPU i has APIC id i

    // ACPI's fixed hardware, as ports.
    uint16_t pm_event_port = 0;   // PM1a status and enable, 4 bytes
    uint16_t pm_control_port = 0; // 2 bytes
    uint16_t pm_timer_port = 0;   // 4 bytes, a timer of 32 bits
    uint8_t soft_off_type = 0;    // SLP_TYP of \_S5
    uint8_t sci = 9;              // level-triggered, active high
    uint16_t reset_port = 0;
    uint8_t reset_value = 0;

    uint16_t serial_port = 0; // a 16550, 8 ports
    uint8_t serial_irq = 0;
    uint16_t rtc_port = 0; // an MC146818, 2 ports
    uint8_t rtc_irq = 0;
    uint8_t rtc_century = 0; // index of its century byte

    std::vector<PlatformMmioDevice> virtio;

    // Where the 16 bytes lie by which a guest sees that it is a copy (docs: "Virtual Machine Generation ID",
    // Microsoft), and the edge-triggered interrupt that tells of a change. 0: there are none.
    uint64_t generation_id = 0;
    uint32_t generation_gsi = 0;
};

// The interrupt controllers of a PC.
constexpr uint32_t kLocalApicAddress = 0xFEE00000;
constexpr uint32_t kIoApicAddress = 0xFEC00000;
constexpr uint8_t kIoApicId = 0;   // what KVM's I/O APIC says of itself
constexpr uint8_t kTimerIrq = 0;   // the PIT's
constexpr uint8_t kTimerGsi = 2;   // where it is wired to
constexpr uint8_t kCascadeIrq = 2; // no interrupt of its own
constexpr uint8_t kIsaIrqs = 16;
constexpr uint8_t kIoApicPins = 24;

} // namespace liveupdate::vmm
