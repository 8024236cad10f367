// The registers of a 16550A by offset, and their bits (PC16550D data sheet, "Summary of registers").
#pragma once

#include <cstdint>

namespace liveupdate::vmm::uart {

constexpr uint16_t kData = 0;                    // RBR read, THR write; DLL while DLAB is set
constexpr uint16_t kInterruptEnable = 1;         // IER; DLM while DLAB is set
constexpr uint16_t kInterruptIdentification = 2; // IIR, read
constexpr uint16_t kFifoControl = 2;             // FCR, write
constexpr uint16_t kLineControl = 3;
constexpr uint16_t kModemControl = 4;
constexpr uint16_t kLineStatus = 5;
constexpr uint16_t kModemStatus = 6;
constexpr uint16_t kScratch = 7;

// IER
constexpr uint8_t kReceiveInterrupt = 0x01;
constexpr uint8_t kTransmitInterrupt = 0x02;
constexpr uint8_t kLineStatusInterrupt = 0x04;
constexpr uint8_t kModemStatusInterrupt = 0x08;
constexpr uint8_t kInterruptEnableMask = 0x0F;

// IIR, highest priority first
constexpr uint8_t kSourceLineStatus = 0x06;
constexpr uint8_t kSourceReceive = 0x04;
constexpr uint8_t kSourceReceiveTimeout = 0x0C;
constexpr uint8_t kSourceTransmitter = 0x02;
constexpr uint8_t kSourceModemStatus = 0x00;
constexpr uint8_t kSourceNone = 0x01;
constexpr uint8_t kFifosEnabled = 0xC0;

// FCR
constexpr uint8_t kFifoEnable = 0x01;
constexpr uint8_t kResetReceiveFifo = 0x02;
constexpr uint8_t kResetTransmitFifo = 0x04;
constexpr uint8_t kFifoControlMask = 0xC9; // what stays: enable, DMA mode, trigger level
constexpr unsigned kTriggerShift = 6;

// LCR
constexpr uint8_t kDivisorLatch = 0x80;

// MCR
constexpr uint8_t kDataTerminalReady = 0x01;
constexpr uint8_t kRequestToSend = 0x02;
constexpr uint8_t kOut1 = 0x04;
constexpr uint8_t kOut2 = 0x08;
constexpr uint8_t kLoopback = 0x10;
constexpr uint8_t kModemControlMask = 0x1F;

// LSR
constexpr uint8_t kDataReady = 0x01;
constexpr uint8_t kOverrunError = 0x02;
constexpr uint8_t kLineErrorMask = 0x1E; // overrun, parity, framing, break
constexpr uint8_t kTransmitHoldingEmpty = 0x20;
constexpr uint8_t kTransmitterEmpty = 0x40;

// MSR
constexpr uint8_t kTrailingEdgeRing = 0x04;
constexpr uint8_t kModemDeltaMask = 0x0F;
constexpr uint8_t kClearToSend = 0x10;
constexpr uint8_t kDataSetReady = 0x20;
constexpr uint8_t kRingIndicator = 0x40;
constexpr uint8_t kCarrierDetect = 0x80;

} // namespace liveupdate::vmm::uart
