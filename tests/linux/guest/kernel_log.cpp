#include "tests/linux/guest/kernel_log.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace linux_guest {

namespace {

constexpr const char* kCopy = "virtual machine fork"; // a clone's kernel has heard that it is one

} // namespace

bool tells_of_harm(const std::string& line) {
    static constexpr std::array kWords = {"soft lockup", "hard LOCKUP", "detected stall",
        "self-detected stall", "rcu_sched kthread", "blocked for more than", "BUG:", "WARNING:", "Oops",
        "Call Trace", "general protection", "I/O error", "EXT4-fs error", "EXT4-fs warning",
        "Marking clocksource", "clocksource: timekeeping watchdog", "NETDEV WATCHDOG", "workqueue lockup",
        "segfault", "Out of memory", "is not a head!", "ACPI Error", "Disabling IRQ", "nobody cared",
        "Machine Check"};
    for (const char* word : kWords)
        if (line.find(word) != std::string::npos) return true;
    return false;
}

void KernelLog::read_all(int fd) {
    std::array<char, 8192> record{};
    for (;;) {
        const ssize_t n = ::read(fd, record.data(), record.size() - 1);
        if (n < 0 && errno == EPIPE) continue; // records were overwritten before they were read
        if (n <= 0) return;
        ++lines_;
        const std::string line(record.data(), static_cast<std::size_t>(n));
        const std::string words = line.substr(line.find(';') + 1, line.find('\n') - line.find(';') - 1);
        if (tells_of_harm(line)) error("kernel log: " + words);
        if (line.find(kCopy) != std::string::npos) say("copy " + words);
    }
}

void KernelLog::run(const std::atomic<bool>& stop) {
    const int fd = ::open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) {
        error(text("kernel log: /dev/kmsg: %s", std::strerror(errno)));
        return;
    }
    while (!stop) {
        read_all(fd);
        sleep_us(500'000);
    }
    read_all(fd);
    ::close(fd);
}

std::string KernelLog::progress() const {
    return text("log lines=%llu", static_cast<unsigned long long>(lines_.load()));
}

} // namespace linux_guest
