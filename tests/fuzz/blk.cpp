// The queues and registers of virtio-blk, over a file in memory and a real io_uring.
#include "vmm/devices/virtio/blk.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "handoff/base/fd.hpp"
#include "tests/fuzz/virtio_driver.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace liveupdate;
    constexpr uint64_t kSectors = 256;
    fuzz::Input input(data, size);
    fuzz::Ram ram;
    fuzz::Interrupt interrupt;
    vmm::virtio::Blk::Config config;
    config.name = "disk0";
    config.queues = 2;
    config.capacity = kSectors;
    config.read_only = input.byte() % 8 == 0;
    auto file = fd::memfd_create("disk", 0);
    if (!file || ::ftruncate(file->get(), kSectors * 512) < 0) std::abort();
    std::optional<vmm::virtio::Blk::BackEnd> back_end(std::in_place);
    back_end->file = std::move(*file);
    vmm::virtio::Blk device({ram.memory(), interrupt}, config, std::move(back_end));
    fuzz::Driver(ram, device, [&](fuzz::Input&) {
        while (!device.at_rest())
            device.round();
    }).obey(input);
    return 0;
}
