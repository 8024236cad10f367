#include "supervisor/cli/up_to_date.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/wait.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "handoff/base/fd.hpp"
#include "supervisor/binary.hpp"
#include "supervisor/cli/control_client.hpp"
#include "supervisor/cli/json_view.hpp"
#include "supervisor/cli/record_view.hpp"

extern char** environ;

namespace liveupdate::supervisor::cli {
namespace {

using namespace std::chrono_literals;

constexpr auto kSlotPoll = 50ms;
constexpr auto kAnswerTime = 10s;
constexpr auto kReexecTime = 30s; // until the new supervisor has adopted the VMM

// One of the places; the lock goes with the descriptor. A user who cannot lock any takes none.
UniqueFd take_slot(const Paths& paths, unsigned slots) {
    for (;; std::this_thread::sleep_for(kSlotPoll)) {
        for (unsigned number = 0; number < slots; ++number) {
            auto file = fd::open(paths.rollout_slot(number), O_RDWR | O_CREAT, 0644);
            if (!file) return {};
            if (::flock(file->get(), LOCK_EX | LOCK_NB) == 0) return std::move(*file);
        }
    }
}

Result<nlohmann::json> ask(
    const Paths& paths, const std::string& name, const nlohmann::json& request, Deadline deadline) {
    TRY_ASSIGN(ControlClient client, ControlClient::connect(paths, name));
    return client.call(request, deadline);
}

// True when the supervisor is another one now.
Result<bool> renew_supervisor(const Paths& paths, const std::string& name) {
    const auto answer = ask(paths, name, {{"command", "reexec"}}, Deadline::after(kAnswerTime));
    // A supervisor of a version that knows no such request is changed by a restart of it only.
    if (!answer && answer.error().code == ErrorCode::kInvalid) return false;
    if (!answer) return answer.error();
    if (!answer->value("reexec", false)) return false;
    const Deadline deadline = Deadline::after(kReexecTime);
    for (;;) {
        const auto version = ask(paths, name, {{"command", "version"}}, Deadline::after(kAnswerTime));
        if (version) return true;
        if (deadline.passed())
            return Error(version.error()).context("the supervisor was changed and does not answer");
        std::this_thread::sleep_for(kSlotPoll);
    }
}

} // namespace

BroughtUp bring_up_to_date(const Paths& paths, const std::string& name, unsigned slots) {
    const UniqueFd slot = take_slot(paths, slots);
    BroughtUp result;
    const auto renewed = renew_supervisor(paths, name);
    if (!renewed) {
        result.code = exit_code(renewed.error());
        result.sentence = "its supervisor stays as it is: " + renewed.error().message + "; ";
        if (result.code == ExitCode::kUnreachable || result.code == ExitCode::kPermission)
            return {result.code, renewed.error().message};
    } else if (*renewed) {
        result.sentence = "its supervisor was renewed; ";
    }
    const auto answer = ask(
        paths, name, {{"command", "update"}, {"kind", "update"}, {"if_outdated", true}}, Deadline::never());
    if (!answer)
        return {worst(result.code, exit_code(answer.error())), result.sentence + answer.error().message};
    const auto record = record_from_json(*answer);
    if (!record) return {ExitCode::kInternal, result.sentence + record.error().message};
    const ExitCode updated = exit_code(record->outcome);
    result.sentence += describe(*record);
    const bool idle = renewed && !*renewed;
    result.code = idle ? updated : worst(result.code, updated);
    return result;
}

int run_program(const std::vector<std::string>& arguments) {
    std::vector<char*> argv;
    for (const std::string& argument : arguments)
        argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    pid_t pid = -1;
    const int failed = ::posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    if (failed != 0) return 127;
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

} // namespace liveupdate::supervisor::cli
