#include "tests/support/slow_disk.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/magic.h>

#include <vector>

#include "handoff/base/listening.hpp"
#include "tests/support/live_vm.hpp"

namespace liveupdate::tests {
namespace {

pid_t run(std::vector<std::string> words) {
    std::vector<char*> arguments;
    for (std::string& word : words)
        arguments.push_back(word.data());
    arguments.push_back(nullptr);
    const pid_t pid = ::fork();
    if (pid != 0) return pid;
    const int null = ::open("/dev/null", O_RDWR);
    for (const int target : {0, 1, 2})
        ::dup2(null, target);
    ::execvp(arguments[0], arguments.data());
    ::_exit(127);
}

bool is_fuse(const std::string& path) {
    struct statfs where {};
    return ::statfs(path.c_str(), &where) == 0 && where.f_type == FUSE_SUPER_MAGIC;
}

} // namespace

std::string SlowDisk::why_none() {
    for (const char* program : {"/usr/sbin/nbdkit", "/usr/bin/nbdkit"})
        if (::access(program, X_OK) == 0 && ::access("/usr/bin/nbdfuse", X_OK) == 0 &&
            ::access("/dev/fuse", R_OK | W_OK) == 0)
            return {};
    return "a slow disk needs nbdkit, nbdfuse (package libnbd-bin) and /dev/fuse; ./dev setup --all";
}

SlowDisk::SlowDisk(const std::string& file, uint64_t bytes, const std::string& socket) : path_(file) {
    server_ = run({"nbdkit", "-f", "-U", socket, "--filter=delay", "memory", std::to_string(bytes),
        "rdelay=200ms", "wdelay=200ms"});
    LiveVm::eventually([&] { return is_listening(socket); });
    mount_ = run({"nbdfuse", path_, "--unix", socket});
    up_ = LiveVm::eventually([&] { return is_fuse(path_); });
}

SlowDisk::~SlowDisk() {
    // nbdfuse unmounts when it is told to end.
    for (const pid_t pid : {mount_, server_}) {
        ::kill(pid, SIGTERM);
        ::waitpid(pid, nullptr, 0);
    }
}

} // namespace liveupdate::tests
