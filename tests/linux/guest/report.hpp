// What the guest's program says, a line each on its console: "LU error …", "LU progress …", "LU ok …".
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

namespace linux_guest {

// Any thread. One line, written whole.
void say(const std::string& line);
// Any thread. Counted; the first ones are said.
void error(const std::string& what);
std::uint64_t errors();

// printf into a string.
std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));

// All of a small file, such as those of /proc; empty without it. (No streams: their static library would
// double the program, and a software KVM unpacks an initramfs slowly.)
std::string content_of(const char* path);

std::uint64_t now_ns(); // CLOCK_MONOTONIC
void sleep_us(std::uint64_t us);

// The largest of all values seen.
class Maximum {
public:
    void see(std::uint64_t value) {
        std::uint64_t old = value_.load(std::memory_order_relaxed);
        while (value > old && !value_.compare_exchange_weak(old, value)) {
        }
    }
    std::uint64_t value() const { return value_.load(std::memory_order_relaxed); }

private:
    std::atomic<std::uint64_t> value_ = 0;
};

// One kind of work that is done and checked until it is told to stop, on a thread of its own.
class Check {
public:
    Check() = default;
    Check(const Check&) = delete;
    Check& operator=(const Check&) = delete;
    virtual ~Check() = default;

    // Until `stop` is set; then its closing checks. Faults go to error().
    virtual void run(const std::atomic<bool>& stop) = 0;
    // Any thread, at any time: "disk vda reads=1 writes=2".
    virtual std::string progress() const = 0;
};

} // namespace linux_guest
