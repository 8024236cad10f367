// `reload` for service managers, and `rollout`, which does what the host's policy says after an installation.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>

#include "supervisor/cli/commands.hpp"
#include "supervisor/cli/json_view.hpp"
#include "supervisor/cli/rollout.hpp"
#include "supervisor/cli/up_to_date.hpp"
#include "supervisor/cli/vms.hpp"
#include "supervisor/rollout_policy.hpp"

namespace liveupdate::supervisor::cli {
namespace {

constexpr const char* kWindowUnit = "liveupdate-window";

struct RolloutArguments {
    bool now = false;       // whatever the policy says
    bool in_window = false; // the time that the policy waits for has come
};

ExitCode run_reload(CliIo& io, const std::vector<std::string>& given) {
    const auto names = checked_names(given);
    if (!names) return complain(io, names.error());
    const auto policy = load_rollout_policy(io.paths.host_policy());
    if (!policy) return complain(io, policy.error());
    ExitCode code = ExitCode::kDone;
    for (const std::string& name : *names) {
        const BroughtUp brought = bring_up_to_date(io.paths, name, policy->parallel);
        (went_well(brought.code) ? io.out : io.err)
            << name << ": " << printable(brought.sentence) << std::endl;
        code = worst(code, brought.code);
    }
    return code;
}

ExitCode update_all(CliIo& io, const std::vector<std::string>& names, const RolloutPolicy& policy) {
    std::mutex writing;
    const auto update = [&](size_t index) {
        const BroughtUp brought = bring_up_to_date(io.paths, names[index], policy.parallel);
        const std::lock_guard lock(writing);
        io.out << names[index] << ": " << printable(brought.sentence) << std::endl;
        return brought.code;
    };
    // One guest that cannot be updated does not keep the others from being mended, unless it is a canary.
    const RolloutOptions options{policy.parallel, policy.canary, AfterFailure::kGoOn};
    const auto codes = run_rollout(names.size(), options, {update, [] { return false; }});
    ExitCode code = ExitCode::kNothingToDo;
    for (size_t i = 0; i < codes.size(); ++i) {
        if (!codes[i]) io.out << names[i] << ": not begun, because a canary failed" << std::endl;
        code = worst(code, codes[i].value_or(ExitCode::kNothingToDo));
    }
    return code == ExitCode::kNothingToDo ? ExitCode::kDone : code;
}

void show_outdated(CliIo& io, const std::vector<std::string>& names) {
    for (const std::string& name : names) {
        const auto status = vm_status(io.paths, name);
        if (!status || !status->value("outdated", false)) continue;
        io.out << name << ": outdated, runs on in " << printable(text_at(*status, "/vmm/version"))
               << "; `liveupdate now " << name << "` updates it";
        const std::string reason = text_at(*status, "/last_update/reason");
        if (!reason.empty()) io.out << " (the last attempt: " << printable(reason) << ')';
        io.out << std::endl;
    }
}

// A program of the service manager's, of the system's or the user's.
int run_for_manager(const std::string& program, const std::vector<std::string>& arguments) {
    std::vector<std::string> all = {program};
    if (::geteuid() != 0) all.push_back("--user");
    all.push_back("--quiet");
    all.insert(all.end(), arguments.begin(), arguments.end());
    return run_program(all);
}

// systemd keeps the time; what the timer starts is this command again.
ExitCode wait_for_window(CliIo& io, const std::string& window) {
    const std::string own = std::filesystem::read_symlink("/proc/self/exe");
    const std::string timer = std::string(kWindowUnit) + ".timer";
    if (run_for_manager("systemctl", {"is-active", timer}) == 0)
        run_for_manager("systemctl", {"stop", timer});
    const int status = run_for_manager("systemd-run",
        {"--collect", "--unit", kWindowUnit, "--on-calendar", window, own, "rollout", "--in-window"});
    if (status != 0)
        return complain(
            io, Error(ErrorCode::kInvalid, "systemd-run did not take the window '" + window + "' (status " +
                                               std::to_string(status) + "); correct 'window' in " +
                                               io.paths.host_policy() + ", see systemd.time(7)"));
    io.out << "updates wait for the window " << window << " (" << timer << ")" << std::endl;
    return ExitCode::kDone;
}

ExitCode run_host_rollout(CliIo& io, const RolloutArguments& arguments) {
    const auto policy = load_rollout_policy(io.paths.host_policy());
    if (!policy) return complain(io, policy.error());
    const auto names = vms_with_socket(io.paths);
    if (names.empty()) return ExitCode::kDone;
    // A timer may be older than the policy, so what it starts reads it once more.
    const bool due = arguments.now || (arguments.in_window && policy->mode == RolloutMode::kWindow);
    const RolloutMode mode = due ? RolloutMode::kAutomatic : policy->mode;
    ExitCode code = ExitCode::kDone;
    if (mode == RolloutMode::kAutomatic) code = update_all(io, names, *policy);
    if (mode == RolloutMode::kWindow) code = wait_for_window(io, policy->window);
    show_outdated(io, names);
    return code;
}

} // namespace

void add_rollout_commands(CLI::App& app, Action& chosen) {
    CLI::App& reload =
        *app.add_subcommand("reload", "Bring the supervisor and the VMM of VMs to what is installed");
    const auto names = std::make_shared<std::vector<std::string>>();
    reload.add_option("NAME", *names, "the VMs, by name")->required();
    reload.callback([names, &chosen] { chosen = [names](CliIo& io) { return run_reload(io, *names); }; });

    CLI::App& rollout = *app.add_subcommand(
        "rollout", "After an installation: what liveupdate.toml says, for every VM that runs");
    const auto arguments = std::make_shared<RolloutArguments>();
    rollout.add_flag("--now", arguments->now, "update now, whatever liveupdate.toml says");
    rollout.add_flag("--in-window", arguments->in_window, "what the timer runs: the window has come");
    rollout.callback([arguments, &chosen] {
        chosen = [arguments](CliIo& io) { return run_host_rollout(io, *arguments); };
    });
}

} // namespace liveupdate::supervisor::cli
