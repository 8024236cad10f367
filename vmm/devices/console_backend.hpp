// The two sides of a console, as each sees the other: a device with a queue in either direction, and a back
// end that is served by a loop. vCPU threads touch only queues; all reading and writing of files is the
// loop's, so a slow console never blocks a vCPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace liveupdate::vmm {

// Whether anybody reads what the guest writes.
enum class ConsoleReader {
    kNever,    // there is no console: output may vanish at once
    kAway,     // nobody just now: output waits while there is room, then it is dropped
    kAttached, // somebody: output waits, and the guest waits with it
};

// Called from vCPU threads with the device's lock held: never blocks, never calls the device.
class ConsoleBackend {
public:
    ConsoleBackend() = default;
    ConsoleBackend(const ConsoleBackend&) = delete;
    ConsoleBackend& operator=(const ConsoleBackend&) = delete;
    virtual ~ConsoleBackend() = default;

    virtual ConsoleReader reader() const = 0;
    // There is output again, or room for input again: the loop should look.
    virtual void wake() = 0;
};

// A machine's device that has no console: what the guest writes vanishes.
class NoConsole final : public ConsoleBackend {
public:
    ConsoleReader reader() const override { return ConsoleReader::kNever; }
    void wake() override {}
};

// Called by the loop only; locks itself against vCPU threads.
class ConsoleFrontend {
public:
    ConsoleFrontend() = default;
    ConsoleFrontend(const ConsoleFrontend&) = delete;
    ConsoleFrontend& operator=(const ConsoleFrontend&) = delete;
    virtual ~ConsoleFrontend() = default;

    // Copies the oldest bytes that wait to be written, as many as fit; returns how many. They stay.
    virtual size_t peek_output(std::span<uint8_t> into) const = 0;
    // The `count` oldest bytes have been written.
    virtual void consume_output(size_t count) = 0;

    // How many bytes the next receive() takes for certain.
    virtual size_t receive_space() const = 0;
    // Takes bytes for the guest; returns how many. The rest is to be offered again after a wake().
    virtual size_t receive(std::span<const uint8_t> bytes) = 0;

    // ConsoleBackend::reader() may say something else than before, or the loop is at work again.
    virtual void reader_changed() = 0;

    // Bytes of the guest that were lost since it was started, because nobody was there to read them. Any
    // thread.
    virtual uint64_t dropped_output() const = 0;
};

} // namespace liveupdate::vmm
