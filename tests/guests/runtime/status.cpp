#include "tests/guests/runtime/status.hpp"

#include "tests/guests/runtime/cpu.hpp"
#include "tests/guests/runtime/power.hpp"
#include "tests/guests/runtime/serial_port.hpp"

namespace tests::guests {

namespace {

void record_error(VcpuSlot& slot, ErrorCode code, std::uint64_t arg0, std::uint64_t arg1) {
    ReportHeader& head = header();
    std::uint64_t unclaimed = 0;
    if (__atomic_compare_exchange_n(
            &head.first_error_claim, &unclaimed, 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
        put(head.first_error_vcpu, slot.index);
        put(head.first_error_args[0], arg0);
        put(head.first_error_args[1], arg1);
        write_field(head.first_error, static_cast<std::uint64_t>(code));
    }
    add(slot.errors, 1);
    __atomic_fetch_add(&head.errors, 1, __ATOMIC_RELEASE);
}

void print_hex(std::uint64_t value) {
    for (int shift = 60; shift >= 0; shift -= 4) {
        SerialPort::put_polled("0123456789abcdef"[(value >> shift) & 15]);
    }
}

} // namespace

void report_error(ErrorCode code, std::uint64_t arg0, std::uint64_t arg1) {
    record_error(this_slot(), code, arg0, arg1);
}

void exit_vm(std::uint32_t value) {
    out32(kDebugExitPort, value);
    for (;;)
        pause();
}

void stop_vm(std::uint64_t command) {
    if (command == kStopResetByKeyboard) out8(0x64, 0xfe);
    if (command == kStopResetByPort) {
        out8(0xcf9, 0x02);
        out8(0xcf9, 0x06);
    }
    if (command == kStopByButton || command == kStopNotByButton) await_button();
    if (command == kStopByButton || command == kStopPowerOff) power_off();
    if (command == kStopExit) exit_vm(kExitOk);
    for (;;)
        pause();
}

} // namespace tests::guests

/// Called by interrupts.S in ring 0.
extern "C" void runtime_exception(
    std::uint64_t vector, std::uint64_t code, std::uint64_t rip, std::uint64_t cr2) {
    using namespace tests::guests;
    put(header().fault_address, cr2);
    report_error(ErrorCode::kException, vector << 32 | code, rip);
    SerialPort::print_polled("\nguest exception, vector ");
    print_hex(vector);
    SerialPort::print_polled(" code ");
    print_hex(code);
    SerialPort::print_polled(" rip ");
    print_hex(rip);
    SerialPort::print_polled(" cr2 ");
    print_hex(cr2);
    SerialPort::print_polled("\n");
    exit_vm(kExitFault);
}

// The compiler may call these for copies and for structures set to zero.
extern "C" void* memset(void* target, int value, std::size_t bytes) {
    void* cursor = target;
    asm volatile("rep stosb" : "+D"(cursor), "+c"(bytes) : "a"(value) : "memory");
    return target;
}

extern "C" void* memcpy(void* target, const void* source, std::size_t bytes) {
    void* cursor = target;
    asm volatile("rep movsb" : "+D"(cursor), "+S"(source), "+c"(bytes) : : "memory");
    return target;
}
