#include "tests/linux/guest/report.hpp"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <mutex>

namespace linux_guest {
namespace {

constexpr std::uint64_t kErrorsSaid = 30;
std::atomic<std::uint64_t> error_count = 0;
std::mutex console;

} // namespace

void say(const std::string& line) {
    const std::string whole = "LU " + line + "\n";
    const std::lock_guard lock(console);
    for (std::size_t done = 0; done < whole.size();) {
        const ssize_t n = ::write(STDOUT_FILENO, whole.data() + done, whole.size() - done);
        if (n <= 0) return;
        done += static_cast<std::size_t>(n);
    }
}

void error(const std::string& what) {
    if (error_count++ < kErrorsSaid) say("error " + what);
}

std::uint64_t errors() {
    return error_count;
}

std::string text(const char* format, ...) {
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    return line;
}

std::string content_of(const char* path) {
    std::string content;
    const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return content;
    char bytes[4096];
    for (ssize_t n = 0; (n = ::read(fd, bytes, sizeof(bytes))) > 0;)
        content.append(bytes, static_cast<std::size_t>(n));
    ::close(fd);
    return content;
}

std::uint64_t now_ns() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

void sleep_us(std::uint64_t us) {
    const timespec rest{static_cast<time_t>(us / 1'000'000), static_cast<long>(us % 1'000'000 * 1000)};
    ::nanosleep(&rest, nullptr);
}

} // namespace linux_guest
