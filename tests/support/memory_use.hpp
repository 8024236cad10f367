// What a VM takes of the host's memory, watched while something happens to it: the most that its processes
// had mapped, and, where this process can make a memory cgroup, the most that the kernel had charged them.
//
// The two differ by what was given back and is not free yet: of a huge page that is unmapped in part, the
// kernel keeps that part until it is short of memory. A limit tells what is needed.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <thread>

namespace liveupdate::tests {

// A figure of /proc/PID/FILE, from its line "KEY: N kB", in KiB; 0 when there is no such process or line.
uint64_t kib_of(pid_t pid, const std::string& file, const std::string& key);

struct MemoryUse {
    uint64_t mapped = 0;             // bytes: resident of all processes, added up, each shared page in parts
    std::optional<uint64_t> charged; // bytes: of the cgroup; none where there is no cgroup
};

// A memory cgroup, with this process in it, so that all that it starts from now on is, too. Ends with the
// object, which nothing that was started in it may outlive.
class MemoryGroup {
public:
    MemoryGroup();
    MemoryGroup(const MemoryGroup&) = delete;
    MemoryGroup& operator=(const MemoryGroup&) = delete;
    ~MemoryGroup();

    std::optional<uint64_t> charged() const; // bytes
    // What was started in it gets no more than that, and nothing is swapped out: the kernel frees what is
    // given back, or kills. This process leaves the group. False: the kernel does not let one.
    bool limit(uint64_t bytes) const;

private:
    std::string parent_, folder_; // empty: there is none
};

// Of a supervisor and the VMMs that it has started.
MemoryUse memory_use(pid_t supervisor, const MemoryGroup& group);

// Looks again and again, on a thread of its own, from its construction to stop().
class MemoryWatch {
public:
    MemoryWatch(pid_t supervisor, const MemoryGroup& group);
    ~MemoryWatch() { stop(); }
    MemoryUse before() const { return before_; }
    MemoryUse stop(); // the most of each

private:
    pid_t supervisor_;
    const MemoryGroup& group_;
    MemoryUse before_, peak_;
    std::atomic<bool> done_{false};
    std::thread thread_;
};

} // namespace liveupdate::tests
