#include <unistd.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "handoff/base/deadline.hpp"
#include "supervisor/cli/commands.hpp"
#include "supervisor/cli/control_client.hpp"
#include "supervisor/cli/json_view.hpp"
#include "supervisor/cli/start_wait.hpp"
#include "supervisor/cli/supervisor_process.hpp"
#include "supervisor/cli/vms.hpp"
#include "supervisor/config.hpp"
#include "supervisor/units.hpp"

namespace liveupdate::supervisor::cli {
namespace {

using namespace std::chrono_literals;

struct StartArguments {
    std::string target;
    std::string timeout = "60s";
    bool foreground = false;
};

struct StopArguments {
    std::vector<std::string> names;
    std::string timeout; // empty: as the VM file says
    bool now = false;
    bool force = false;
};

Result<VmConfig> config_of(const Paths& paths, const std::string& target) {
    const bool is_file = target.find('/') != std::string::npos || target.ends_with(".toml");
    if (is_file) return load_vm_config(target);
    TRY(check_vm_name(target));
    auto config = load_vm_config(paths.config(target));
    if (!config && config.error().system_errno == ENOENT)
        return Error(ErrorCode::kNotFound, "there is no VM '" + target + "': " + paths.config(target) +
                                               " does not exist; write it, or give a file");
    return config;
}

ExitCode run_start(CliIo& io, const StartArguments& arguments) {
    const auto config = config_of(io.paths, arguments.target);
    if (!config) return complain(io, config.error());
    const auto timeout = parse_duration(arguments.timeout).context("--timeout");
    if (!timeout) return complain(io, timeout.error());
    if (const std::string state = state_of(io.paths, config->name); !state.empty()) {
        io.out << config->name << ": nothing to do: it is " << state << " already\n";
        return ExitCode::kNothingToDo;
    }
    if (const auto made = make_directories(io.paths.vm_runtime_dir(config->name)); !made)
        return complain(io, made.error());
    if (arguments.foreground) {
        io.out.flush();
        return complain(io, exec_supervisor(io.supervisor_program, config->path));
    }
    auto process =
        SupervisorProcess::spawn(io.supervisor_program, config->path, io.paths.supervisor_log(config->name));
    if (!process) return complain(io, process.error());
    return wait_until_running(io, config->name, *process, Deadline::after(*timeout));
}

// What is asked of the supervisor, and how long its answer may take.
struct StopOrder {
    nlohmann::json request;
    Deadline deadline;
};

Result<StopOrder> order_stop(const StopArguments& arguments) {
    constexpr auto kLongestPolicy = 1h; // of [policy] stop_timeout
    constexpr auto kForTheVmm = 20s;
    nlohmann::json request = {{"command", "stop"}, {"force", arguments.force}};
    std::chrono::microseconds guest_time = kLongestPolicy;
    if (!arguments.timeout.empty()) {
        TRY_ASSIGN(guest_time, parse_duration(arguments.timeout).context("--timeout"));
    }
    if (arguments.now) guest_time = 0s;
    if (arguments.now || !arguments.timeout.empty())
        request["timeout_ms"] =
            static_cast<uint64_t>(std::chrono::ceil<std::chrono::milliseconds>(guest_time).count());
    return StopOrder{std::move(request), Deadline::after(guest_time + kForTheVmm)};
}

ExitCode stop_one(CliIo& io, const std::string& name, const StopOrder& order) {
    auto client = ControlClient::connect(io.paths, name);
    if (!client) {
        const bool known = ::access(io.paths.config(name).c_str(), F_OK) == 0;
        if (client.error().code != ErrorCode::kNotFound || !known) return complain(io, client.error());
        io.out << name << ": nothing to do: it is not running\n";
        return ExitCode::kNothingToDo;
    }
    ControlClient::Hooks hooks;
    hooks.on_event = [&](const nlohmann::json& event) {
        if (event.value("asked_to_end", false))
            io.err << name << ": asked to power off, waiting for the guest\n" << std::flush;
    };
    const auto answer = client->call(order.request, order.deadline, hooks);
    if (!answer) return complain(io, answer.error());
    wait_until_gone(io.paths, name);
    const bool timed_out = text_at(*answer, "/guest", "") == "timed-out";
    io.out << name << (timed_out ? ": stopped; the guest did not power off in time" : ": stopped") << '\n';
    return ExitCode::kDone;
}

ExitCode run_stop(CliIo& io, const StopArguments& arguments) {
    const auto names = checked_names(arguments.names);
    if (!names) return complain(io, names.error());
    ExitCode code = ExitCode::kNothingToDo;
    for (const auto& name : *names) {
        const auto order = order_stop(arguments);
        if (!order) return complain(io, order.error());
        code = worst(code, stop_one(io, name, *order));
    }
    return code;
}

} // namespace

void add_lifecycle_commands(CLI::App& app, Action& chosen) {
    CLI::App& start = *app.add_subcommand("start", "Start a VM under a supervisor of its own");
    const auto starting = std::make_shared<StartArguments>();
    start.add_option("VM", starting->target, "a VM's name, or a path of its TOML file")->required();
    start.add_flag("--foreground", starting->foreground, "become the supervisor instead of starting one");
    start.add_option("--timeout", starting->timeout, "how long to wait until it runs")->capture_default_str();
    start.callback(
        [starting, &chosen] { chosen = [starting](CliIo& io) { return run_start(io, *starting); }; });

    CLI::App& stop = *app.add_subcommand("stop", "Stop VMs and their supervisors");
    const auto stopping = std::make_shared<StopArguments>();
    stop.add_option("NAME", stopping->names, "the VMs, by name")->required();
    stop.add_flag("--now", stopping->now, "do not ask the guest to power off, cut its power");
    stop.add_flag("--force", stopping->force, "do not wait for the VMM either, kill it");
    stop.add_option("--timeout", stopping->timeout,
        "how long to wait for the guest's power-off, in place of [policy] stop_timeout");
    stop.callback(
        [stopping, &chosen] { chosen = [stopping](CliIo& io) { return run_stop(io, *stopping); }; });
}

} // namespace liveupdate::supervisor::cli
