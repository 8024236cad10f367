// The queue and registers of virtio-rng.
#include "vmm/devices/virtio/rng.hpp"

#include "tests/fuzz/virtio_driver.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace liveupdate::fuzz;
    Input input(data, size);
    Ram ram;
    Interrupt interrupt;
    liveupdate::vmm::virtio::Rng device({ram.memory(), interrupt});
    Driver(ram, device, [](Input&) {}).obey(input);
    return 0;
}
