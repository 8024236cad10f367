// Small helpers of the handoff library's tests.
#pragma once

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"

namespace liveupdate::handoff {

// The value; a test whose set-up fails ends with the error's words.
template <typename T>
T must(Result<T> result) {
    if (!result) FAIL(result.error().message);
    return std::move(result).value();
}
inline void must(Result<void> result) {
    if (!result) FAIL(result.error().message);
}

// A limit for what must happen and is not measured: long enough for a loaded machine under a sanitizer.
inline Deadline patience() {
    return Deadline::after(std::chrono::seconds(60));
}
inline Deadline soon() {
    return Deadline::after(std::chrono::milliseconds(20));
}

inline size_t open_fds() {
    const std::filesystem::directory_iterator fds("/proc/self/fd");
    return static_cast<size_t>(std::distance(begin(fds), end(fds)));
}

inline bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

// Runs `body` in a forked child, which ends by its return value; only while this process has one thread.
class Child {
public:
    explicit Child(const std::function<int()>& body) : pid_(::fork()) {
        if (pid_ != 0) return;
        ::alarm(120); // a child that hangs is a failure, not a hung test
        ::_exit(body());
    }
    Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
    Child(const Child&) = delete;
    Child& operator=(const Child&) = delete;
    ~Child() {
        if (pid_ > 0) {
            ::kill(pid_, SIGKILL);
            wait();
        }
    }
    pid_t pid() const { return pid_; }
    // The exit status; -1 when it died of a signal.
    int wait() {
        int status = 0;
        const pid_t waited = ::waitpid(std::exchange(pid_, -1), &status, 0);
        return waited > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }

private:
    pid_t pid_;
};

} // namespace liveupdate::handoff
