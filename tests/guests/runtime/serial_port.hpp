#pragma once
/// COM1, a 16550: registers and polled output. No state of its own.
#include <cstdint>

#include "tests/guests/runtime/cpu.hpp"

namespace tests::guests {

class SerialPort {
public:
    static constexpr std::uint16_t kData = 0x3f8;
    static constexpr std::uint16_t kInterruptEnable = 0x3f9;
    static constexpr std::uint16_t kInterruptId = 0x3fa; ///< FIFO control when written
    static constexpr std::uint16_t kLineControl = 0x3fb;
    static constexpr std::uint16_t kModemControl = 0x3fc;
    static constexpr std::uint16_t kLineStatus = 0x3fd;

    static constexpr std::uint8_t kEnableReceived = 1;
    static constexpr std::uint8_t kEnableTransmit = 2;
    static constexpr std::uint8_t kDataReady = 0x01;
    static constexpr std::uint8_t kTransmitEmpty = 0x20;
    static constexpr std::uint8_t kNoInterrupt = 0x01;

    /// 115200 8N1, FIFOs on and empty, interrupts off, OUT2 set (it gates IRQ 4 on a PC).
    /// Returns how many bytes may be written per empty transmitter: 16, or 1 without FIFO.
    static unsigned initialize() {
        out8(kInterruptEnable, 0);
        out8(kLineControl, 0x80);
        out8(kData, 1);
        out8(kInterruptEnable, 0);
        out8(kLineControl, 0x03);
        out8(kInterruptId, 0x07);
        out8(kModemControl, 0x0b);
        in8(kData); // as Linux does: QEMU takes no more input after a reset of a full FIFO until it is read
        return (in8(kInterruptId) & 0xc0) == 0xc0 ? 16 : 1;
    }

    static void put_polled(char byte) {
        while ((in8(kLineStatus) & kTransmitEmpty) == 0)
            pause();
        out8(kData, static_cast<std::uint8_t>(byte));
    }

    static void print_polled(const char* text) {
        while (*text != '\0')
            put_polled(*text++);
    }
};

} // namespace tests::guests
