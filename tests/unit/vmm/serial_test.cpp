#include "vmm/devices/serial.hpp"

#include <doctest/doctest.h>

#include "tests/unit/vmm/fakes.hpp"
#include "vmm/devices/serial_registers.hpp"

namespace liveupdate::vmm::test {
namespace {

using namespace uart;

struct Port {
    FakeLine line;
    FakeConsole console;
    Serial serial{"serial0", line, console};

    uint8_t in(uint16_t offset) { return static_cast<uint8_t>(serial.read(offset, 1)); }
    void out(uint16_t offset, unsigned value) { serial.write(offset, 1, value); }
    void send(const std::string& text) {
        for (const char c : text)
            out(kData, static_cast<uint8_t>(c));
    }
    void fill_output() { send(std::string(Serial::kOutputCapacity, 'x')); }
    size_t receive(const std::string& text) { return serial.receive(bytes_of(text)); }
};

TEST_CASE("a fresh serial port is idle and ready to send") {
    Port port;
    CHECK(port.in(kLineStatus) == 0x60);
    CHECK(port.in(kInterruptIdentification) == kSourceNone);
    CHECK(port.in(kModemStatus) == 0xB0);
    CHECK_FALSE(port.line.level);
}

TEST_CASE("bytes that the guest writes reach the console in order") {
    Port port;
    port.send("hello");
    CHECK(port.console.wakes == 1);
    CHECK(take_output(port.serial) == "hello");
    CHECK(port.in(kLineStatus) == 0x60);
}

TEST_CASE("the divisor latch hides data and interrupt enable") {
    Port port;
    port.out(kLineControl, 0x83);
    port.out(0, 0x34);
    port.out(1, 0x12);
    CHECK(port.in(0) == 0x34);
    CHECK(port.in(1) == 0x12);
    port.out(kLineControl, 0x03);
    CHECK(port.in(kInterruptEnable) == 0);
    CHECK(take_output(port.serial).empty());
}

TEST_CASE("the scratch register keeps a byte and interrupt enable keeps four bits") {
    Port port;
    port.out(kScratch, 0xA5);
    CHECK(port.in(kScratch) == 0xA5);
    port.out(kInterruptEnable, 0xFF);
    CHECK(port.in(kInterruptEnable) == 0x0F);
}

TEST_CASE("enabling the transmitter interrupt raises it, and reading IIR clears it") {
    Port port;
    port.out(kInterruptEnable, kTransmitInterrupt);
    CHECK(port.line.level);
    CHECK(port.in(kInterruptIdentification) == kSourceTransmitter);
    CHECK_FALSE(port.line.level);
    CHECK(port.in(kInterruptIdentification) == kSourceNone);
    // Linux's test of the transmitter: off and on again tells it anew.
    port.out(kInterruptEnable, 0);
    port.out(kInterruptEnable, kTransmitInterrupt);
    CHECK(port.in(kInterruptIdentification) == kSourceTransmitter);
}

TEST_CASE("each byte sent gives a new edge on the interrupt line") {
    Port port;
    port.out(kInterruptEnable, kTransmitInterrupt);
    const int before = port.line.rises;
    port.send("ab");
    CHECK(port.line.rises == before + 2);
    CHECK(port.line.level);
}

TEST_CASE("interrupts are told by priority and a read of IIR clears only the transmitter's own") {
    Port port;
    port.out(kFifoControl, kFifoEnable);
    port.out(kModemControl, kLoopback);
    for (int i = 0; i < 17; ++i)
        port.out(kData, 'a');                            // overruns by one
    port.out(kModemControl, kLoopback | kRequestToSend); // a modem delta
    port.out(kInterruptEnable, 0x0F);
    CHECK(port.in(kInterruptIdentification) == (kFifosEnabled | kSourceLineStatus));
    CHECK((port.in(kLineStatus)&kOverrunError) != 0);
    CHECK(port.in(kInterruptIdentification) == (kFifosEnabled | kSourceReceive));
    for (int i = 0; i < 16; ++i)
        CHECK(port.in(kData) == 'a');
    CHECK(port.in(kInterruptIdentification) == (kFifosEnabled | kSourceTransmitter));
    CHECK(port.in(kInterruptIdentification) == (kFifosEnabled | kSourceModemStatus));
    CHECK((port.in(kModemStatus)&kModemDeltaMask) != 0);
    CHECK(port.in(kInterruptIdentification) == (kFifosEnabled | kSourceNone));
    CHECK_FALSE(port.line.level);
}

TEST_CASE("received data interrupts at the trigger level and by time-out below it") {
    Port port;
    port.out(kFifoControl, kFifoEnable | 0x80); // trigger at 8
    port.out(kInterruptEnable, kReceiveInterrupt);
    CHECK(port.receive("1234567") == 7);
    CHECK(port.in(kInterruptIdentification) == (kFifosEnabled | kSourceReceiveTimeout));
    CHECK(port.receive("8") == 1);
    CHECK(port.in(kInterruptIdentification) == (kFifosEnabled | kSourceReceive));
    std::string got;
    while (port.in(kLineStatus)&kDataReady)
        got += static_cast<char>(port.in(kData));
    CHECK(got == "12345678");
    CHECK_FALSE(port.line.level);
}

TEST_CASE("input is taken only as far as there is room, and room is announced") {
    Port port;
    CHECK(port.serial.receive_space() == 1); // FIFOs are off
    port.out(kFifoControl, kFifoEnable);
    CHECK(port.serial.receive_space() == 16);
    CHECK(port.receive(std::string(16, 'a')) == 16);
    CHECK(port.serial.receive_space() == 0);
    const int wakes = port.console.wakes;
    port.in(kData);
    CHECK(port.console.wakes == wakes + 1);
    CHECK(port.serial.receive_space() == 1);
}

TEST_CASE("input read for room that the guest took away meanwhile is not lost") {
    Port port;
    port.out(kFifoControl, kFifoEnable);
    REQUIRE(port.serial.receive_space() == 16);
    port.out(kModemControl, kLoopback);
    CHECK(port.receive("0123456789abcdef") == 16);
    CHECK((port.in(kLineStatus)&kDataReady) == 0);
    CHECK(port.serial.receive_space() == 0);
    port.out(kModemControl, 0);
    std::string got;
    while (port.in(kLineStatus)&kDataReady)
        got += static_cast<char>(port.in(kData));
    CHECK(got == "0123456789abcdef");
}

TEST_CASE("loopback connects the modem's outputs to its inputs and tells the changes") {
    Port port;
    port.out(kModemControl, kLoopback);
    CHECK((port.in(kModemStatus)&0xF0) == 0);
    port.out(kModemControl, kLoopback | kRequestToSend | kOut1);
    CHECK(port.in(kModemStatus) == (kClearToSend | kRingIndicator | 0x01)); // a rising ring is not told
    port.out(kModemControl, kLoopback | kRequestToSend);
    CHECK(port.in(kModemStatus) == (kClearToSend | kTrailingEdgeRing));
    port.out(kData, 'z');
    CHECK(port.in(kData) == 'z');
    CHECK(take_output(port.serial).empty());
}

TEST_CASE("without FIFOs an overrun replaces the byte that was not read") {
    Port port;
    port.out(kModemControl, kLoopback);
    port.out(kData, 'a');
    port.out(kData, 'b');
    CHECK((port.in(kLineStatus)&kOverrunError) != 0);
    CHECK((port.in(kLineStatus)&kOverrunError) == 0);
    CHECK(port.in(kData) == 'b');
}

TEST_CASE("a full output buffer holds the guest up while somebody reads") {
    Port port;
    port.out(kFifoControl, kFifoEnable);
    port.out(kInterruptEnable, kTransmitInterrupt);
    port.fill_output();
    CHECK((port.in(kLineStatus)&kTransmitHoldingEmpty) != 0);
    port.send("waits");
    CHECK((port.in(kLineStatus) & (kTransmitHoldingEmpty | kTransmitterEmpty)) == 0);
    CHECK_FALSE(port.line.level);
    CHECK(take_output(port.serial, 5).size() == 5);
    CHECK((port.in(kLineStatus)&kTransmitHoldingEmpty) != 0);
    CHECK(port.line.level);
    const std::string rest = take_output(port.serial);
    CHECK(rest.substr(rest.size() - 5) == "waits");
    CHECK(port.serial.dropped_output() == 0);
}

TEST_CASE("a full output buffer drops new bytes and counts them while nobody reads") {
    Port port;
    port.console.who = ConsoleReader::kAway;
    port.send("first");
    port.fill_output();
    CHECK((port.in(kLineStatus)&kTransmitHoldingEmpty) != 0);
    CHECK(port.serial.dropped_output() == 5);
    CHECK(take_output(port.serial).substr(0, 5) == "first");
}

TEST_CASE("a reader that goes away lets the guest go on") {
    Port port;
    port.fill_output();
    port.send("a");
    CHECK((port.in(kLineStatus)&kTransmitHoldingEmpty) == 0);
    port.console.who = ConsoleReader::kAway;
    port.serial.reader_changed();
    CHECK((port.in(kLineStatus)&kTransmitHoldingEmpty) != 0);
    CHECK(port.serial.dropped_output() == 1);
}

TEST_CASE("without a console output vanishes and nothing is counted") {
    Port port;
    port.console.who = ConsoleReader::kNever;
    port.fill_output();
    CHECK(take_output(port.serial).empty());
    CHECK(port.serial.dropped_output() == 0);
    CHECK(port.console.wakes == 0);
}

TEST_CASE("turning FIFOs on or off empties them") {
    Port port;
    port.out(kFifoControl, kFifoEnable);
    port.receive("abc");
    port.out(kFifoControl, 0);
    CHECK((port.in(kLineStatus)&kDataReady) == 0);
    CHECK(port.in(kInterruptIdentification) == kSourceNone);
}

TEST_CASE("an update in the middle of everything loses no byte and no interrupt") {
    Port source;
    source.out(kFifoControl, kFifoEnable | 0xC0);
    source.out(kInterruptEnable, 0x03);
    source.fill_output();
    source.send("held");
    source.receive("typed");
    const auto saved = source.serial.save();
    REQUIRE(saved);

    Port destination;
    REQUIRE(destination.serial.load(*saved, 1));
    CHECK(destination.line.level == source.line.level);
    CHECK(destination.in(kInterruptIdentification) == source.in(kInterruptIdentification));
    CHECK(take_output(destination.serial) == take_output(source.serial));
    std::string got;
    while (destination.in(kLineStatus)&kDataReady)
        got += static_cast<char>(destination.in(kData));
    CHECK(got == "typed");
    CHECK(destination.in(kInterruptIdentification) == (kFifosEnabled | kSourceTransmitter));
}

TEST_CASE("a wide access is one of as many registers") {
    Port port;
    port.serial.write(kLineControl, 2, 0x1F03);
    CHECK(port.in(kLineControl) == 0x03);
    CHECK(port.in(kModemControl) == 0x1F);
    CHECK(port.serial.read(kLineControl, 2) == 0x1F03);
}

} // namespace
} // namespace liveupdate::vmm::test
