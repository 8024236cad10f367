// Saving and loading of a serial port.
#include "vmm/devices/serial.hpp"

#include "vmm/devices/serial.pb.h"
#include "vmm/devices/serial_registers.hpp"
#include "vmm/devices/state_message.hpp"

namespace liveupdate::vmm {

using namespace uart;

namespace {

Result<void> check_registers(const state::Serial& message) {
    TRY(check_at_most("divisor", message.divisor(), 0xFFFF));
    TRY(check_bits("interrupt_enable", message.interrupt_enable(), kInterruptEnableMask));
    TRY(check_bits("fifo_control", message.fifo_control(), kFifoControlMask));
    TRY(check_at_most("line_control", message.line_control(), 0xFF));
    TRY(check_bits("modem_control", message.modem_control(), kModemControlMask));
    TRY(check_bits("line_errors", message.line_errors(), kLineErrorMask));
    TRY(check_bits("modem_deltas", message.modem_deltas(), kModemDeltaMask));
    TRY(check_at_most("scratch", message.scratch(), 0xFF));
    const bool fifos_on = (message.fifo_control() & kFifoEnable) != 0;
    if (!fifos_on && message.fifo_control() != 0)
        return Error(ErrorCode::kRefused, "field \"fifo_control\" has bits set although FIFOs are off");
    return {};
}

Result<void> check_queues(const state::Serial& message) {
    const size_t depth = (message.fifo_control() & kFifoEnable) != 0 ? Serial::kFifoCapacity : 1;
    TRY(check_at_most("receive_fifo's length", message.receive_fifo().size(), depth));
    TRY(check_at_most("transmit_fifo's length", message.transmit_fifo().size(), depth));
    TRY(check_at_most("input's length", message.input().size(), Serial::kFifoCapacity));
    TRY(check_at_most("output's length", message.output().size(), Serial::kOutputCapacity));
    return {};
}

} // namespace

Result<std::string> Serial::save() const {
    state::Serial message;
    {
        const std::lock_guard lock(mutex_);
        message.set_divisor(registers_.divisor);
        message.set_interrupt_enable(registers_.interrupt_enable);
        message.set_fifo_control(registers_.fifo_control);
        message.set_line_control(registers_.line_control);
        message.set_modem_control(registers_.modem_control);
        message.set_line_errors(registers_.line_errors);
        message.set_modem_deltas(registers_.modem_deltas);
        message.set_scratch(registers_.scratch);
        message.set_transmitter_interrupt(registers_.transmitter_interrupt);
        message.set_interrupt_level(interrupt_level_);
        message.set_receive_fifo(receive_fifo_.content());
        message.set_transmit_fifo(transmit_fifo_.content());
        message.set_input(input_.content());
        message.set_output(output_.content());
        message.set_dropped_output(dropped_output_);
    }
    return serialise_state(message);
}

Result<void> Serial::load(std::string_view bytes, uint32_t version) {
    state::Serial message;
    TRY(parse_state(message, bytes, version, schema_));
    TRY(check_registers(message).context("state of " + schema_.section));
    TRY(check_queues(message).context("state of " + schema_.section));

    const std::lock_guard lock(mutex_);
    registers_.divisor = static_cast<uint16_t>(message.divisor());
    registers_.interrupt_enable = static_cast<uint8_t>(message.interrupt_enable());
    registers_.fifo_control = static_cast<uint8_t>(message.fifo_control());
    registers_.line_control = static_cast<uint8_t>(message.line_control());
    registers_.modem_control = static_cast<uint8_t>(message.modem_control());
    registers_.line_errors = static_cast<uint8_t>(message.line_errors());
    registers_.modem_deltas = static_cast<uint8_t>(message.modem_deltas());
    registers_.scratch = static_cast<uint8_t>(message.scratch());
    registers_.transmitter_interrupt = message.transmitter_interrupt();
    receive_fifo_.assign(message.receive_fifo());
    transmit_fifo_.assign(message.transmit_fifo());
    input_.assign(message.input());
    output_.assign(message.output());
    dropped_output_ = message.dropped_output();
    // First the level that the interrupt controller was left with, so that the edge it has seen is not seen
    // again; then the one that this binary derives, should a corrected model differ from the source's.
    interrupt_level_ = message.interrupt_level();
    line_.set(interrupt_level_);
    update_interrupt();
    return {};
}

} // namespace liveupdate::vmm
