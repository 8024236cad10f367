// A 16550A UART (National Semiconductor PC16550D data sheet, "Registers" and "FIFO interrupt mode").
//
// What a guest can see is modelled; time on the wire is not:
// - A byte leaves the transmitter at once for a host-side buffer of kOutputCapacity bytes, which the
//   console's loop empties. Only when that is full do bytes stay in the transmit FIFO and THRE stays low, and
//   only while somebody reads the console; else new bytes are dropped and counted, older ones are kept.
// - The receive FIFO's time-out interrupt comes at once, instead of after four characters' time, whenever the
//   FIFO holds less than its trigger level.
// - OUT2 does not gate the interrupt line: guests that never set it get their interrupts, as in QEMU.
// - CTS, DSR and DCD are always asserted outside loopback.
#pragma once

#include <mutex>
#include <string>

#include "vmm/devices/byte_queue.hpp"
#include "vmm/devices/console_backend.hpp"
#include "vmm/devices/device.hpp"
#include "vmm/devices/interrupt_line.hpp"
#include "vmm/devices/pio_bus.hpp"

namespace liveupdate::vmm {

class Serial final : public Device, public PioDevice, public ConsoleFrontend {
public:
    static constexpr uint16_t kCom1 = 0x3F8; // interrupt 4 on a PC
    static constexpr uint16_t kCom2 = 0x2F8; // interrupt 3
    static constexpr uint32_t kPorts = 8;

    static constexpr size_t kFifoCapacity = 16;
    static constexpr size_t kOutputCapacity = size_t{16} << 10;

    // `name` is also the section of its state ("serial0"). `line` and `console` must outlive the device; the
    // caller also makes the device known to the console, and gives it its ports on a bus.
    Serial(std::string name, InterruptLine& line, ConsoleBackend& console);

    std::string_view name() const override { return schema_.section; }
    StateDeclaration state() const override { return schema_; }
    // Exact only while the console is on hold: else bytes may be saved and written out by the loop as well.
    Result<std::string> save() const override;
    Result<void> load(std::string_view bytes, uint32_t version) override;

    // PioDevice. An access of 2 or 4 bytes is one of as many registers, lowest first, as the ISA bus does it.
    uint32_t read(uint16_t offset, unsigned size) override;
    void write(uint16_t offset, unsigned size, uint32_t value) override;

    // ConsoleFrontend: for the console's loop.
    size_t peek_output(std::span<uint8_t> into) const override;
    void consume_output(size_t count) override;
    size_t receive_space() const override;
    size_t receive(std::span<const uint8_t> bytes) override;
    void reader_changed() override;

    // Bytes that the guest wrote and that were lost since it was started: nobody was there to read them, or
    // it wrote into a full transmitter.
    uint64_t dropped_output() const override;

private:
    struct Registers {
        uint16_t divisor = 12; // 9600 baud
        uint8_t interrupt_enable = 0;
        uint8_t fifo_control = 0;
        uint8_t line_control = 0;
        uint8_t modem_control = 0;
        uint8_t line_errors = 0;
        uint8_t modem_deltas = 0;
        uint8_t scratch = 0;
        bool transmitter_interrupt = false;
    };

    // All of these with mutex_ held.
    bool fifos_on() const;
    bool loopback() const;
    bool divisor_latch() const;
    size_t fifo_depth() const;
    bool has_room() const;
    uint8_t read_register(uint16_t offset);
    void write_register(uint16_t offset, uint8_t value);
    uint8_t read_receive_buffer();
    uint8_t read_interrupt_identification();
    uint8_t interrupt_source() const;
    uint8_t receive_source() const;
    uint8_t line_status() const;
    uint8_t modem_lines() const;
    void write_transmit_holding(uint8_t value);
    void write_interrupt_enable(uint8_t value);
    void write_fifo_control(uint8_t value);
    void write_modem_control(uint8_t value);
    void loop_back(uint8_t value);
    void move_output();
    void move_input();
    void update_interrupt();

    const StateSchema schema_;
    InterruptLine& line_;
    ConsoleBackend& console_;

    mutable std::mutex mutex_;
    Registers registers_;
    bool interrupt_level_ = false;
    ByteQueue receive_fifo_{kFifoCapacity};
    ByteQueue transmit_fifo_{kFifoCapacity};
    // What the loop has read for space that the guest has taken away meanwhile (loopback, FIFOs turned off).
    ByteQueue input_{kFifoCapacity};
    ByteQueue output_{kOutputCapacity};
    uint64_t dropped_output_ = 0;
};

} // namespace liveupdate::vmm
