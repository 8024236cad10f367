#include "supervisor/cli/start_wait.hpp"

#include <thread>

#include "supervisor/cli/control_client.hpp"
#include "supervisor/cli/json_view.hpp"

namespace liveupdate::supervisor::cli {
namespace {

using namespace std::chrono_literals;

constexpr size_t kLogLines = 10;
constexpr auto kPollEvery = 2ms; // a clone runs some 15 ms after the command began

ExitCode report_death(CliIo& io, const std::string& name, const SupervisorProcess& process, int status) {
    io.err << "liveupdate: the supervisor of " << name << " ended "
           << (status >= 128 ? "by signal " + std::to_string(status - 128)
                             : "with status " + std::to_string(status))
           << "; the end of its log " << io.paths.supervisor_log(name) << ":\n"
           << process.log_tail(kLogLines);
    // Its own exit codes are those of the command.
    const bool known = status > 0 && status <= static_cast<int>(ExitCode::kAborted);
    return known ? static_cast<ExitCode>(status) : ExitCode::kFailed;
}

} // namespace

std::string state_of(const Paths& paths, const std::string& name) {
    auto client = ControlClient::connect(paths, name);
    if (!client) return "";
    const auto status = client->call({{"command", "status"}}, Deadline::after(5s));
    return status ? text_at(*status, "/state", "unknown") : "";
}

ExitCode wait_until_running(
    CliIo& io, const std::string& name, SupervisorProcess& process, Deadline deadline) {
    for (;;) {
        const std::string state = state_of(io.paths, name);
        if (state == "lost")
            return complain(io, Error(ErrorCode::kInternal, name + ": the guest is lost")), ExitCode::kLost;
        if (!state.empty() && state != "starting") {
            io.out << name << ": " << state << '\n';
            return ExitCode::kDone;
        }
        if (const auto status = process.ended()) return report_death(io, name, process, *status);
        if (deadline.passed())
            return complain(io, Error(ErrorCode::kTimeout,
                                    name + " is still starting; see " + io.paths.supervisor_log(name)));
        std::this_thread::sleep_for(kPollEvery);
    }
}

} // namespace liveupdate::supervisor::cli
