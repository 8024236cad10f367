// Work that prepares or cleans up while the guest runs somewhere on this machine: done by a thread of low
// priority, so that the guest's vCPUs go first.
#pragma once

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <optional>
#include <thread>
#include <utility>

namespace liveupdate::vmm {

inline constexpr int kQuietNice = 10;

// Lowers the calling thread's priority, for good: an unprivileged process may not raise it again.
inline void be_quiet() {
    ::setpriority(PRIO_PROCESS, static_cast<id_t>(::syscall(SYS_gettid)), kQuietNice);
}

// Runs `work` in a thread of low priority and waits for it.
template <typename Work>
auto quietly(Work&& work) {
    std::optional<decltype(work())> result;
    std::thread thread([&] {
        be_quiet();
        result.emplace(work());
    });
    thread.join();
    return std::move(*result);
}

} // namespace liveupdate::vmm
