// Device state from a hostile peer: the first byte chooses the device, the rest is what it is to load. What
// was loaded must be saved as something that loads again, and the device must work on with it.
#include <array>

#include "tests/fuzz/virtio_driver.hpp"
#include "vmm/devices/acpi_pm.hpp"
#include "vmm/devices/reset.hpp"
#include "vmm/devices/rtc.hpp"
#include "vmm/devices/serial.hpp"
#include "vmm/devices/virtio/blk.hpp"
#include "vmm/devices/virtio/console.hpp"
#include "vmm/devices/virtio/net.hpp"
#include "vmm/devices/virtio/rng.hpp"

namespace {

using namespace liveupdate;
using namespace liveupdate::vmm;

struct Surroundings final : InterruptLine, MachineControl {
    void set(bool) override {}
    void request_exit(uint32_t) override {}
    void request_power_off() override {}
    void request_reset() override {}

    fuzz::Ram ram;
    fuzz::Interrupt interrupt;
    NoConsole console;
    SystemClock clock;
    virtio::VirtioDevice::Place place{ram.memory(), interrupt};
};

void load(Device& device, std::span<const uint8_t> bytes) {
    const auto schema = std::get<StateSchema>(device.state());
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    const auto before = device.save();
    if (!before) std::abort();
    if (!device.load(text, schema.version)) {
        if (*device.save() != *before) std::abort(); // half-applied
        return;
    }
    const auto saved = device.save();
    if (!saved || !device.load(*saved, schema.version)) std::abort();
}

void load_and_work(virtio::VirtioDevice& device, std::span<const uint8_t> bytes) {
    if (!device.open_without_thread()) std::abort();
    load(device, bytes);
    device.unhold();
    device.round();
    device.round();
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const std::span<const uint8_t> bytes(data + 1, size - 1);
    Surroundings s;
    switch (data[0] % 8) {
    case 0: {
        Serial device("serial0", s, s.console);
        load(device, bytes);
        break;
    }
    case 1: {
        ResetControl device(s);
        load(device, bytes);
        break;
    }
    case 2: {
        AcpiPm device(s, s, s.clock);
        load(device, bytes);
        break;
    }
    case 3: {
        Rtc device(s.clock);
        load(device, bytes);
        break;
    }
    case 4: {
        virtio::Blk::Config config;
        config.name = "disk0";
        config.queues = 2;
        config.capacity = 1 << 20;
        virtio::Blk device(s.place, config, std::nullopt); // requests need a kernel: see blk.cpp
        load(device, bytes);
        break;
    }
    case 5: {
        const virtio::NetSpec spec{0, {0x52, 0x54, 0, 1, 2, 3}, 2, 1500, virtio::kEveryTapsOffloads};
        virtio::Net device(spec, {}, s.place);
        load(device, bytes);
        break;
    }
    case 6: {
        virtio::Rng device(s.place);
        load_and_work(device, bytes);
        break;
    }
    default: {
        virtio::ConsolePort device(s.console, s.place);
        load_and_work(device, bytes);
    }
    }
    return 0;
}
