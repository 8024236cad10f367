// Stand-ins for what surrounds a device.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "vmm/devices/console_backend.hpp"
#include "vmm/devices/host_clock.hpp"
#include "vmm/devices/interrupt_line.hpp"
#include "vmm/devices/machine_control.hpp"

namespace liveupdate::vmm::test {

struct FakeLine final : InterruptLine {
    bool level = false;
    int rises = 0;

    void set(bool new_level) override {
        if (new_level && !level) ++rises;
        level = new_level;
    }
};

struct FakeConsole final : ConsoleBackend {
    ConsoleReader who = ConsoleReader::kAttached;
    int wakes = 0;

    ConsoleReader reader() const override { return who; }
    void wake() override { ++wakes; }
};

struct FakeClock final : HostClock {
    uint64_t monotonic = 1'000'000'000;
    uint64_t realtime = 1'795'342'530'000'000'000; // 2026-11-22 10:15:30, a Sunday

    uint64_t monotonic_ns() const override { return monotonic; }
    uint64_t realtime_ns() const override { return realtime; }
    void advance(uint64_t ns) {
        monotonic += ns;
        realtime += ns;
    }
};

struct FakeMachine final : MachineControl {
    std::vector<uint32_t> exits;
    int resets = 0;
    int power_offs = 0;

    void request_exit(uint32_t status) override { exits.push_back(status); }
    void request_power_off() override { ++power_offs; }
    void request_reset() override { ++resets; }
};

// Everything a front end wants to have written, taken from it.
inline std::string take_output(ConsoleFrontend& frontend, size_t most = SIZE_MAX) {
    std::string all;
    std::vector<uint8_t> chunk(4096);
    while (all.size() < most) {
        const size_t count =
            frontend.peek_output(std::span(chunk).first(std::min(chunk.size(), most - all.size())));
        if (count == 0) break;
        all.append(chunk.begin(), chunk.begin() + static_cast<std::ptrdiff_t>(count));
        frontend.consume_output(count);
    }
    return all;
}

inline std::span<const uint8_t> bytes_of(const std::string& text) {
    return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

} // namespace liveupdate::vmm::test
