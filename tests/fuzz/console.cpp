// The queues and registers of virtio-console, between a driver and a console's loop.
#include "vmm/devices/virtio/console.hpp"

#include "tests/fuzz/virtio_driver.hpp"

namespace {

using namespace liveupdate;

struct BackEnd final : vmm::ConsoleBackend {
    vmm::ConsoleReader who = vmm::ConsoleReader::kAttached;
    vmm::ConsoleReader reader() const override { return who; }
    void wake() override {}
};

void serve(BackEnd& back_end, vmm::ConsoleFrontend& device, fuzz::Input& input) {
    const uint8_t what = input.byte();
    if (what % 4 == 0) {
        back_end.who = static_cast<vmm::ConsoleReader>(what / 4 % 3);
        return device.reader_changed();
    }
    if (what % 4 == 1) {
        device.receive(input.take_bytes(std::min<size_t>(device.receive_space(), input.byte())));
        return;
    }
    std::vector<uint8_t> bytes(input.take<uint16_t>() % 8192);
    device.consume_output(device.peek_output(bytes));
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    fuzz::Input input(data, size);
    fuzz::Ram ram;
    fuzz::Interrupt interrupt;
    BackEnd back_end;
    vmm::virtio::ConsolePort device(back_end, {ram.memory(), interrupt});
    fuzz::Driver(ram, device, [&](fuzz::Input& more) { serve(back_end, device, more); }).obey(input);
    return 0;
}
