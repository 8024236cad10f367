#include "tests/fuzz/virtio_driver.hpp"

#include <cstdlib>

namespace liveupdate::fuzz {
namespace {

constexpr int kMostSteps = 400;

void must(bool held) {
    if (!held) std::abort();
}

} // namespace

void Ram::put(uint64_t gpa, std::span<const uint8_t> bytes) {
    for (size_t i = 0; i < bytes.size(); ++i)
        if (const auto at = memory_.at(gpa + i, 1)) (*at)[0] = bytes[i];
}

Driver::Driver(Ram& ram, vmm::virtio::VirtioDevice& device, std::function<void(Input&)> back_end)
    : ram_(ram), device_(device), back_end_(std::move(back_end)) {
    size_.fill(8);
}

void Driver::obey(Input& input) {
    must(device_.open_without_thread().has_value());
    device_.unhold();
    for (int steps = 0; !input.done() && steps < kMostSteps; ++steps)
        step(input);
    // The kernel still has the guest's RAM until its requests are done.
    while (!device_.at_rest())
        device_.round();
    save_and_load();
}

void Driver::step(Input& input) {
    const uint8_t what = input.byte();
    switch (what % 12) {
    case 0: {
        const uint64_t offset = input.take<uint16_t>() % 0x210;
        const unsigned size = 1u << input.byte() % 4;
        return write(offset, size, input.take<uint64_t>());
    }
    case 1:
        static_cast<void>(device_.transport().read(input.take<uint16_t>() % 0x210, 1u << input.byte() % 4));
        return;
    case 2:
        return agree(input.take<uint64_t>());
    case 3:
        return set_up(input.byte() % kLaidOut, static_cast<uint16_t>(1u << input.byte() % 7));
    case 4:
        return set(0x70, 15);
    case 5:
        return describe(input);
    case 6:
        return offer(input.byte() % kLaidOut, input.take<uint16_t>());
    case 7: {
        const uint64_t gpa = input.take<uint32_t>() % (Ram::kSize + 16);
        return ram_.put(gpa, input.take_bytes(input.byte()));
    }
    case 8: {
        const uint64_t queue = input.byte() % kLaidOut;
        return ram_.put(queue * kQueueBytes + 0x1002, next_[queue] = input.take<uint16_t>());
    }
    case 9:
        set(0x50, input.byte());
        return device_.round();
    case 10:
        return save_and_load();
    default:
        return back_end_(input);
    }
}

// Nobody else would end the requests that a reset waits for: it does not while an update wants the vCPU.
void Driver::write(uint64_t offset, unsigned size, uint64_t value) {
    device_.hold();
    device_.transport().write(offset, size, value);
    device_.unhold();
}

void Driver::agree(uint64_t features) {
    set(0x70, 0);
    next_.fill(0);
    set(0x70, 3);
    for (uint32_t half = 0; half < 2; ++half) {
        set(0x14, half);
        const uint64_t offered = device_.transport().read(0x10, 4);
        set(0x24, half);
        set(0x20, static_cast<uint32_t>(offered & (features >> (32 * half))) | half);
    }
    set(0x70, 11);
}

void Driver::set_up(uint32_t queue, uint16_t size) {
    size_[queue] = size;
    set(0x30, queue);
    set(0x38, size);
    const auto base = static_cast<uint32_t>(queue * kQueueBytes);
    set(0x80, base);
    set(0x90, base + 0x1000);
    set(0xa0, base + 0x1800);
    set(0x44, 1);
}

void Driver::describe(Input& input) {
    const uint64_t table = input.byte() % kLaidOut * kQueueBytes;
    const uint64_t at = table + 16 * uint64_t{input.byte()};
    const uint8_t shape = input.byte();
    uint64_t address = input.take<uint32_t>();
    if ((shape & 1) != 0) address = (address % (Ram::kSize / 16)) * 16;
    if ((shape & 2) != 0) address = Ram::kSize - address % 32;
    if ((shape & 4) != 0) address = UINT64_MAX - address % 32;
    const uint32_t length = (shape & 8) != 0 ? input.take<uint32_t>() : input.take<uint16_t>() % 2048;
    ram_.put(at, address);
    ram_.put(at + 8, length);
    ram_.put(at + 12, uint16_t{static_cast<uint16_t>((shape & 16) != 0 ? input.byte() : shape >> 5)});
    ram_.put(at + 14, uint16_t{input.byte()});
}

void Driver::offer(uint32_t queue, uint16_t head) {
    const uint64_t available = queue * kQueueBytes + 0x1000;
    ram_.put(available + 4 + 2 * uint64_t(next_[queue] % size_[queue]), head);
    ram_.put(available + 2, ++next_[queue]);
}

// What a device says of itself it must take again.
void Driver::save_and_load() {
    device_.hold();
    const auto schema = std::get<vmm::StateSchema>(device_.state());
    const auto saved = device_.save();
    must(saved.has_value());
    if (device_.at_rest()) must(device_.load(*saved, schema.version).has_value());
    device_.unhold();
}

} // namespace liveupdate::fuzz
