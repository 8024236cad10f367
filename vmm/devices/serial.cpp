#include "vmm/devices/serial.hpp"

#include "vmm/devices/serial_registers.hpp"

namespace liveupdate::vmm {

using namespace uart;

Serial::Serial(std::string name, InterruptLine& line, ConsoleBackend& console)
    : schema_{std::move(name), 1, 1}, line_(line), console_(console) {}

uint32_t Serial::read(uint16_t offset, unsigned size) {
    const std::lock_guard lock(mutex_);
    const bool had_room = has_room();
    uint32_t value = 0;
    for (unsigned i = 0; i < size; ++i)
        value |= uint32_t{read_register(static_cast<uint16_t>(offset + i))} << (8 * i);
    update_interrupt();
    if (!had_room && has_room()) console_.wake();
    return value;
}

void Serial::write(uint16_t offset, unsigned size, uint32_t value) {
    const std::lock_guard lock(mutex_);
    const bool had_room = has_room();
    for (unsigned i = 0; i < size; ++i)
        write_register(static_cast<uint16_t>(offset + i), static_cast<uint8_t>(value >> (8 * i)));
    update_interrupt();
    if (!had_room && has_room()) console_.wake();
}

uint8_t Serial::read_register(uint16_t offset) {
    switch (offset) {
    case kData:
        if (divisor_latch()) return static_cast<uint8_t>(registers_.divisor);
        return read_receive_buffer();
    case kInterruptEnable:
        if (divisor_latch()) return static_cast<uint8_t>(registers_.divisor >> 8);
        return registers_.interrupt_enable;
    case kInterruptIdentification:
        return read_interrupt_identification();
    case kLineControl:
        return registers_.line_control;
    case kModemControl:
        return registers_.modem_control;
    case kLineStatus: {
        const uint8_t status = line_status();
        registers_.line_errors = 0;
        return status;
    }
    case kModemStatus: {
        const auto status = static_cast<uint8_t>(modem_lines() | registers_.modem_deltas);
        registers_.modem_deltas = 0;
        return status;
    }
    case kScratch:
        return registers_.scratch;
    default:
        return 0xFF;
    }
}

void Serial::write_register(uint16_t offset, uint8_t value) {
    switch (offset) {
    case kData:
        if (divisor_latch())
            registers_.divisor = static_cast<uint16_t>((registers_.divisor & 0xFF00) | value);
        else
            write_transmit_holding(value);
        return;
    case kInterruptEnable:
        if (divisor_latch())
            registers_.divisor = static_cast<uint16_t>((registers_.divisor & 0x00FF) | (value << 8));
        else
            write_interrupt_enable(value);
        return;
    case kFifoControl:
        return write_fifo_control(value);
    case kLineControl:
        registers_.line_control = value;
        return;
    case kModemControl:
        return write_modem_control(value);
    case kScratch:
        registers_.scratch = value;
        return;
    default:
        return; // LSR is for the factory's tests only, MSR is read-only
    }
}

bool Serial::fifos_on() const {
    return (registers_.fifo_control & kFifoEnable) != 0;
}
bool Serial::loopback() const {
    return (registers_.modem_control & kLoopback) != 0;
}
bool Serial::divisor_latch() const {
    return (registers_.line_control & kDivisorLatch) != 0;
}
size_t Serial::fifo_depth() const {
    return fifos_on() ? kFifoCapacity : 1;
}
bool Serial::has_room() const {
    return !loopback() && input_.empty() && receive_fifo_.size() < fifo_depth();
}

uint8_t Serial::read_receive_buffer() {
    const uint8_t value = receive_fifo_.empty() ? uint8_t{0} : receive_fifo_.pop();
    move_input();
    return value;
}

// In the order of priority of the data sheet's table of interrupt control functions.
uint8_t Serial::interrupt_source() const {
    const uint8_t enabled = registers_.interrupt_enable;
    if ((enabled & kLineStatusInterrupt) && registers_.line_errors != 0) return kSourceLineStatus;
    if ((enabled & kReceiveInterrupt) && !receive_fifo_.empty()) return receive_source();
    if ((enabled & kTransmitInterrupt) && registers_.transmitter_interrupt) return kSourceTransmitter;
    if ((enabled & kModemStatusInterrupt) && registers_.modem_deltas != 0) return kSourceModemStatus;
    return kSourceNone;
}

uint8_t Serial::receive_source() const {
    static constexpr size_t kTriggerLevels[] = {1, 4, 8, 14};
    if (!fifos_on() || receive_fifo_.size() >= kTriggerLevels[registers_.fifo_control >> kTriggerShift])
        return kSourceReceive;
    return kSourceReceiveTimeout;
}

uint8_t Serial::read_interrupt_identification() {
    const uint8_t source = interrupt_source();
    // Reading clears the transmitter's interrupt only when it is the one that is told.
    if (source == kSourceTransmitter) registers_.transmitter_interrupt = false;
    return fifos_on() ? static_cast<uint8_t>(source | kFifosEnabled) : source;
}

uint8_t Serial::line_status() const {
    uint8_t status = registers_.line_errors;
    if (!receive_fifo_.empty()) status |= kDataReady;
    if (transmit_fifo_.empty()) status |= kTransmitHoldingEmpty | kTransmitterEmpty;
    return status;
}

uint8_t Serial::modem_lines() const {
    if (!loopback()) return kClearToSend | kDataSetReady | kCarrierDetect;
    const uint8_t control = registers_.modem_control;
    uint8_t lines = 0;
    if (control & kRequestToSend) lines |= kClearToSend;
    if (control & kDataTerminalReady) lines |= kDataSetReady;
    if (control & kOut1) lines |= kRingIndicator;
    if (control & kOut2) lines |= kCarrierDetect;
    return lines;
}

void Serial::write_transmit_holding(uint8_t value) {
    registers_.transmitter_interrupt = false;
    update_interrupt(); // low for a moment: on an edge-triggered line the next "empty" is a new interrupt
    if (loopback()) {
        loop_back(value);
        registers_.transmitter_interrupt = transmit_fifo_.empty();
        return;
    }
    if (transmit_fifo_.size() == fifo_depth()) {
        // The guest did not look at THRE; a real transmitter loses the byte as well.
        ++dropped_output_;
        return;
    }
    transmit_fifo_.push(value);
    move_output();
}

void Serial::loop_back(uint8_t value) {
    if (receive_fifo_.size() == fifo_depth()) {
        registers_.line_errors |= kOverrunError;
        // Without FIFOs the new byte takes the old one's place; with them the FIFO is left as it is.
        if (fifos_on()) return;
        receive_fifo_.clear();
    }
    receive_fifo_.push(value);
}

// Takes what it can out of the transmit FIFO, which is a transmitter's work.
void Serial::move_output() {
    if (transmit_fifo_.empty()) return;
    const bool was_empty = output_.empty();
    const ConsoleReader reader = console_.reader();
    while (!transmit_fifo_.empty()) {
        if (reader != ConsoleReader::kNever && output_.space() > 0)
            output_.push(transmit_fifo_.pop());
        else if (reader == ConsoleReader::kAttached)
            break;
        else {
            if (reader == ConsoleReader::kAway) ++dropped_output_;
            transmit_fifo_.drop(1);
        }
    }
    if (transmit_fifo_.empty()) registers_.transmitter_interrupt = true;
    if (was_empty && !output_.empty()) console_.wake();
}

void Serial::move_input() {
    if (loopback()) return; // the receiver is cut off from its pin
    while (!input_.empty() && receive_fifo_.size() < fifo_depth())
        receive_fifo_.push(input_.pop());
}

void Serial::write_interrupt_enable(uint8_t value) {
    const auto changed = static_cast<uint8_t>(registers_.interrupt_enable ^ value);
    registers_.interrupt_enable = value & kInterruptEnableMask;
    if ((changed & kTransmitInterrupt) == 0) return;
    // Enabling the interrupt while the holding register is empty raises it: drivers start sending this way.
    registers_.transmitter_interrupt = (value & kTransmitInterrupt) != 0 && transmit_fifo_.empty();
}

void Serial::write_fifo_control(uint8_t value) {
    const bool enable = (value & kFifoEnable) != 0;
    const bool flips = enable != fifos_on();
    if (flips || (value & kResetReceiveFifo)) receive_fifo_.clear();
    if ((flips || (value & kResetTransmitFifo)) && !transmit_fifo_.empty()) {
        transmit_fifo_.clear();
        registers_.transmitter_interrupt = true;
    }
    // The other bits are not programmed while bit 0 is 0.
    registers_.fifo_control = enable ? value & kFifoControlMask : uint8_t{0};
    move_input();
}

void Serial::write_modem_control(uint8_t value) {
    const uint8_t before = modem_lines();
    registers_.modem_control = value & kModemControlMask;
    const uint8_t after = modem_lines();
    auto deltas = static_cast<uint8_t>((before ^ after) >> 4);
    // Of the ring indicator only the trailing edge is told.
    if (after & kRingIndicator) deltas &= static_cast<uint8_t>(~kTrailingEdgeRing);
    registers_.modem_deltas |= deltas;
    move_input();
}

void Serial::update_interrupt() {
    const bool level = interrupt_source() != kSourceNone;
    if (level == interrupt_level_) return;
    interrupt_level_ = level;
    line_.set(level);
}

size_t Serial::peek_output(std::span<uint8_t> into) const {
    const std::lock_guard lock(mutex_);
    return output_.peek(into);
}

void Serial::consume_output(size_t count) {
    const std::lock_guard lock(mutex_);
    output_.drop(count);
    move_output();
    update_interrupt();
}

size_t Serial::receive_space() const {
    const std::lock_guard lock(mutex_);
    return has_room() ? fifo_depth() - receive_fifo_.size() : 0;
}

size_t Serial::receive(std::span<const uint8_t> bytes) {
    const std::lock_guard lock(mutex_);
    size_t taken = 0;
    while (taken < bytes.size() && has_room())
        receive_fifo_.push(bytes[taken++]);
    while (taken < bytes.size() && input_.space() > 0)
        input_.push(bytes[taken++]);
    update_interrupt();
    return taken;
}

void Serial::reader_changed() {
    const std::lock_guard lock(mutex_);
    move_input();
    move_output();
    update_interrupt();
}

uint64_t Serial::dropped_output() const {
    const std::lock_guard lock(mutex_);
    return dropped_output_;
}

} // namespace liveupdate::vmm
