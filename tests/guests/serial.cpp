// Serial guest: vCPU 0 writes numbered lines to COM1 as fast as it can, and echoes what it
// receives as lines that begin with '>', between the numbered ones. Other vCPUs do nothing.
//
// Options: irq (0; 1: transmit on THR-empty interrupts), fifo (1; 0: one byte per THR-empty),
// lines (0: endless; else the VM ends after that many), pace_us (0, between lines).
#include "tests/guests/runtime/apic.hpp"
#include "tests/guests/runtime/cpu.hpp"
#include "tests/guests/runtime/guest.hpp"
#include "tests/guests/runtime/options.hpp"
#include "tests/guests/runtime/serial_port.hpp"
#include "tests/guests/runtime/status.hpp"

extern "C" void serial_entry();

namespace tests::guests {

const GuestKind kGuestKind = GuestKind::kSerial;

namespace {

constexpr unsigned kSerialPin = 4;
constexpr std::uint64_t kStallUs = 2000000;
constexpr std::size_t kMaxEcho = 64; // a longer line is echoed in pieces

/// COM1 with a pump that both directions pass through.
class Console {
public:
    explicit Console(VcpuSlot& slot) : slot_(slot), out_(slot.serial), patience_(kStallUs) {
        const unsigned fifo = SerialPort::initialize();
        put(out_.fifo, option_number("fifo", 1) != 0 ? fifo : 1);
        put(out_.irq_mode, option_number("irq", 0) != 0 ? 1 : 0);
        if (out_.irq_mode == 0) return;
        set_interrupt(VECTOR_SERIAL, serial_entry);
        route_pin(kSerialPin, VECTOR_SERIAL);
        out8(SerialPort::kInterruptEnable, SerialPort::kEnableReceived | SerialPort::kEnableTransmit);
    }

    /// Sends all of it before it returns.
    void send(const char* text, std::size_t length) {
        patience_.restart();
        while (length != 0) {
            await_room();
            for (std::uint64_t n = 0; n < out_.fifo && length != 0; ++n, --length) {
                out8(SerialPort::kData, static_cast<std::uint8_t>(*text++));
                add(out_.bytes, 1);
            }
            patience_.restart();
        }
    }

    /// At a line's end: the first complete line received, if any, goes back.
    void echo() {
        receive();
        std::size_t length = 0;
        while (length < held_ && length < kMaxEcho && !ends_line(input_[length]))
            ++length;
        if (length == held_) return;
        const bool ended = ends_line(input_[length]);
        char line[kMaxEcho + 2];
        line[0] = '>';
        for (std::size_t i = 0; i < length; ++i)
            line[1 + i] = input_[i];
        line[1 + length] = '\n';
        forget(ended ? length + 1 : length);
        send(line, length + 2);
        add(out_.echoes, 1);
    }

    void heartbeat() {
        put(slot_.now_tsc, read_tsc());
        add(slot_.counter, 1);
        obey_stop();
    }

private:
    static bool ends_line(char byte) { return byte == '\n' || byte == '\r'; }

    void forget(std::size_t count) {
        held_ -= count;
        for (std::size_t i = 0; i < held_; ++i)
            input_[i] = input_[i + count];
    }

    /// Takes all that has arrived, since the receive interrupt ends only then.
    void receive() {
        while ((in8(SerialPort::kLineStatus) & SerialPort::kDataReady) != 0) {
            const char byte = static_cast<char>(in8(SerialPort::kData));
            add(out_.received, 1);
            if (held_ == sizeof(input_)) {
                add(out_.dropped, 1);
            } else {
                input_[held_++] = byte;
            }
        }
    }

    void await_room() {
        while (!has_room()) {
            heartbeat();
            pause();
        }
    }

    bool has_room() {
        if (out_.irq_mode == 0) {
            return (in8(SerialPort::kLineStatus) & SerialPort::kTransmitEmpty) != 0;
        }
        if (patience_.expired(read_tsc())) {
            report_error(ErrorCode::kSerialIrqLost, read_field(out_.interrupts), read_tsc());
        }
        const std::uint64_t interrupts = read_field(out_.interrupts);
        if (interrupts == handled_) return false;
        handled_ = interrupts;
        return serve_interrupts();
    }

    /// Until none is pending, since the pin is edge-triggered. Returns whether THR is empty.
    bool serve_interrupts() {
        bool room = false;
        for (;;) {
            const std::uint8_t id = in8(SerialPort::kInterruptId);
            if ((id & SerialPort::kNoInterrupt) != 0) return room;
            if ((id & 0x0e) == 0x02) {
                room = true;
            } else {
                receive();
            }
        }
    }

    VcpuSlot& slot_;
    SerialSlot& out_;
    Watchdog patience_;
    std::uint64_t handled_ = 0;
    char input_[512];
    std::size_t held_ = 0; // bytes in input_
};

constexpr char kLine[] = "line 00000000 ............\n";
constexpr std::size_t kFirstDigit = 5;
constexpr std::size_t kDigits = 8;

/// "line 00000042 ............\n": decimal, modulo 10^8.
void format_line(char (&line)[sizeof(kLine)], std::uint64_t number) {
    for (std::size_t i = 0; i < sizeof(kLine); ++i)
        line[i] = kLine[i];
    for (std::size_t i = kDigits; i-- > 0; number /= 10) {
        line[kFirstDigit + i] = static_cast<char>('0' + number % 10);
    }
}

[[noreturn]] void idle(VcpuSlot& slot) {
    for (;;) {
        put(slot.now_tsc, read_tsc());
        add(slot.counter, 1);
        halt();
    }
}

} // namespace

void set_up() {}

void run(VcpuSlot& slot) {
    if (slot.index != 0) idle(slot);
    const std::uint64_t limit = option_number("lines", 0);
    const std::uint64_t pace = ticks_of_us(option_number("pace_us", 0));
    Console console(slot);
    char line[sizeof(kLine)];
    for (std::uint64_t number = 0; limit == 0 || number < limit; ++number) {
        const std::uint64_t next = read_tsc() + pace;
        format_line(line, number);
        console.send(line, sizeof(kLine) - 1);
        write_field(slot.serial.lines, number + 1);
        console.echo();
        do
            console.heartbeat();
        while (read_tsc() < next);
    }
    exit_vm(kExitOk);
}

} // namespace tests::guests
