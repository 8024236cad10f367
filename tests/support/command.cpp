#include "tests/support/command.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "handoff/base/deadline.hpp"
#include "handoff/base/fd.hpp"

extern char** environ;

namespace liveupdate::tests {
namespace {

std::vector<char*> pointers(std::vector<std::string>& strings) {
    std::vector<char*> out;
    for (auto& s : strings)
        out.push_back(s.data());
    out.push_back(nullptr);
    return out;
}

std::vector<std::string> merged(std::vector<std::string> added) {
    for (char** v = environ; *v != nullptr; ++v) {
        const std::string variable(*v);
        const std::string name = variable.substr(0, variable.find('=') + 1);
        const bool replaced = std::any_of(
            added.begin(), added.end(), [&](const std::string& a) { return a.starts_with(name); });
        if (!replaced) added.push_back(variable);
    }
    return added;
}

struct Pipe {
    UniqueFd read, write;
    Pipe() {
        int ends[2];
        if (::pipe2(ends, O_CLOEXEC) == 0) {
            read = UniqueFd(ends[0]);
            write = UniqueFd(ends[1]);
        }
    }
};

// What daemons that were started left open does not count: the end is the program's own.
void drain(pid_t pid, int pidfd, Pipe& out, Pipe& err, Deadline deadline, CommandResult& result) {
    bool over = false;
    while (!over) {
        pollfd polled[3] = {{pidfd, POLLIN, 0}, {out.read.get(), POLLIN, 0}, {err.read.get(), POLLIN, 0}};
        ::poll(polled, 3, deadline.poll_ms());
        over = (polled[0].revents & POLLIN) != 0;
        if (!over && deadline.passed()) {
            result.timed_out = over = true;
            ::kill(pid, SIGKILL);
        }
        for (auto [pipe, text] : {std::pair{&out, &result.out}, std::pair{&err, &result.err}}) {
            char buffer[65536];
            for (ssize_t n = 0; (n = ::read(pipe->read.get(), buffer, sizeof(buffer))) > 0;)
                text->append(buffer, static_cast<size_t>(n));
        }
    }
}

} // namespace

CommandResult run_command(const std::vector<std::string>& arguments,
    const std::vector<std::string>& environment, std::chrono::seconds limit) {
    std::vector<std::string> argv = arguments, variables = merged(environment);
    Pipe out, err;
    ::fcntl(out.read.get(), F_SETFL, O_NONBLOCK);
    ::fcntl(err.read.get(), F_SETFL, O_NONBLOCK);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    ::posix_spawn_file_actions_adddup2(&actions, out.write.get(), STDOUT_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions, err.write.get(), STDERR_FILENO);
    pid_t pid = -1;
    CommandResult result;
    const int failed = ::posix_spawnp(
        &pid, argv[0].c_str(), &actions, nullptr, pointers(argv).data(), pointers(variables).data());
    ::posix_spawn_file_actions_destroy(&actions);
    if (failed != 0) return result;
    const auto pidfd = fd::pidfd_open(pid);
    if (!pidfd) return result;
    drain(pid, pidfd->get(), out, err, Deadline::after(limit), result);
    int status = 0;
    ::waitpid(pid, &status, 0);
    result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return result;
}

} // namespace liveupdate::tests
