#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <filesystem>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>

#include "supervisor/cli/commands.hpp"
#include "supervisor/cli/control_client.hpp"
#include "supervisor/cli/interrupt.hpp"
#include "supervisor/cli/json_view.hpp"
#include "supervisor/cli/progress.hpp"
#include "supervisor/cli/record_view.hpp"
#include "supervisor/cli/rollout.hpp"
#include "supervisor/cli/vms.hpp"
#include "supervisor/control_protocol.hpp"
#include "supervisor/units.hpp"

namespace liveupdate::supervisor::cli {
namespace {

constexpr std::chrono::seconds kShortAnswer(10);

// As given on the command line.
struct UpdateArguments {
    UpdateKind kind = UpdateKind::kUpdate;
    std::vector<std::string> names;
    std::string binary;
    std::string timeout;
    std::string way;
    RolloutOptions rollout;
    bool all = false;
    bool dry_run = false;
    bool if_outdated = false;
    bool keep_going = false;
    bool json = false;
};

// One `now`, `plan` or `rollback` over its VMs.
class UpdateRun {
public:
    UpdateRun(
        CliIo& io, const UpdateArguments& arguments, std::vector<std::string> names, nlohmann::json request)
        : io_(io), arguments_(arguments), names_(std::move(names)), request_(std::move(request)),
          progress_(io, arguments.json ? Progress::Mode::kSilent : progress_mode(io), names_),
          documents_(names_.size()) {}

    ExitCode run() {
        const InterruptGuard guard;
        const auto codes = run_rollout(names_.size(), arguments_.rollout,
            {[this](size_t index) { return update(index); }, [] { return InterruptGuard::count() > 0; }});
        ExitCode worst_code = ExitCode::kNothingToDo;
        for (size_t i = 0; i < codes.size(); ++i)
            worst_code = worst(worst_code, codes[i] ? *codes[i] : skip(i));
        if (arguments_.json) print_json(io_, documents_);
        return worst_code;
    }

private:
    ExitCode update(size_t index) {
        const std::string& name = names_[index];
        bool abort_sent = false;
        auto result = ask(name, abort_sent);
        if (!result) return end_with(index, result.error(), exit_code(result.error()));
        auto record = record_from_json(*result);
        if (!record) {
            const Error error = std::move(record).error().context("the supervisor's answer");
            return end_with(index, error, ExitCode::kInternal);
        }
        ExitCode code = exit_code(record->outcome);
        if (abort_sent && code == ExitCode::kRolledBack) code = ExitCode::kAborted;
        documents_[index] = std::move(*result);
        documents_[index]["vm"] = name;
        progress_.end(name, code, describe(*record));
        return code;
    }

    Result<nlohmann::json> ask(const std::string& name, bool& abort_sent) {
        TRY_ASSIGN(ControlClient client, ControlClient::connect(io_.paths, name));
        const auto on_event = [&](const nlohmann::json& event) {
            progress_.phase(name, text_at(event, "/phase", "working"), text_at(event, "/detail"));
            if (InterruptGuard::count() > 0) abort_once(name, abort_sent);
        };
        const auto on_tick = [&] {
            progress_.tick();
            if (InterruptGuard::count() > 0) abort_once(name, abort_sent);
            return InterruptGuard::count() > 1 ? ControlClient::Wait::kGiveUp : ControlClient::Wait::kGoOn;
        };
        // No deadline: the supervisor keeps its own, and a second Ctrl-C ends the wait.
        return client.call(request_, Deadline::never(), {on_event, on_tick});
    }

    void abort_once(const std::string& name, bool& abort_sent) {
        if (std::exchange(abort_sent, true)) return;
        progress_.phase(name, "aborting", "press Ctrl-C again to leave it to the supervisor");
        if (auto client = ControlClient::connect(io_.paths, name))
            static_cast<void>(client->call({{"command", "abort"}}, Deadline::after(kShortAnswer)));
    }

    ExitCode end_with(size_t index, const Error& error, ExitCode code) {
        documents_[index] = {{"vm", names_[index]}, {"error", error_to_json(error)}};
        progress_.end(names_[index], code, error.message);
        return code;
    }

    // A VM that was not begun: no failure of its own.
    ExitCode skip(size_t index) {
        const bool interrupted = InterruptGuard::count() > 0;
        const std::string reason =
            interrupted ? "not begun: interrupted" : "not begun, because another VM failed";
        documents_[index] = {{"vm", names_[index]}, {"skipped", reason}};
        progress_.end(names_[index], ExitCode::kNothingToDo, reason);
        return interrupted ? ExitCode::kAborted : ExitCode::kNothingToDo;
    }

    CliIo& io_;
    const UpdateArguments& arguments_;
    const std::vector<std::string> names_;
    const nlohmann::json request_;
    Progress progress_;
    std::vector<nlohmann::json> documents_; // one thread for each element
};

Result<nlohmann::json> make_request(const UpdateArguments& arguments) {
    const UpdateKind kind = arguments.dry_run ? UpdateKind::kPlan : arguments.kind;
    nlohmann::json request = {
        {"command", "update"}, {"kind", to_string(kind)}, {"if_outdated", arguments.if_outdated}};
    if (!arguments.binary.empty()) {
        std::error_code problem;
        const auto path = std::filesystem::absolute(arguments.binary, problem);
        if (problem)
            return Error(ErrorCode::kInvalid, "--binary " + arguments.binary + ": " + problem.message());
        request["binary"] = path.lexically_normal().string();
    }
    if (!arguments.way.empty()) request["way"] = arguments.way;
    if (!arguments.timeout.empty()) {
        auto timeout = parse_duration(arguments.timeout).context("--timeout");
        if (!timeout) return std::move(timeout).error();
        const auto ms = std::chrono::ceil<std::chrono::milliseconds>(*timeout).count();
        if (ms <= 0) return Error(ErrorCode::kInvalid, "--timeout: 0 leaves no time; write for example 30s");
        request["timeout_ms"] = static_cast<uint64_t>(ms);
    }
    return request;
}

Result<std::vector<std::string>> chosen_names(const CliIo& io, const UpdateArguments& arguments) {
    if (!arguments.all && arguments.names.empty())
        return Error(
            ErrorCode::kInvalid, "no VM was named; name one or more, or use --all (see `liveupdate list`)");
    if (arguments.all && !arguments.names.empty())
        return Error(ErrorCode::kInvalid, "both --all and names were given; keep one of them");
    if (arguments.all) return vms_with_socket(io.paths);
    return checked_names(arguments.names);
}

ExitCode run_update(CliIo& io, const UpdateArguments& arguments) {
    auto names = chosen_names(io, arguments);
    if (!names) return complain(io, names.error());
    auto request = make_request(arguments);
    if (!request) return complain(io, request.error());
    if (names->empty() && arguments.json) print_json(io, nlohmann::json::array());
    if (names->empty() && !arguments.json) io.out << "nothing to do: no VM is running\n";
    if (names->empty()) return ExitCode::kNothingToDo;
    return UpdateRun(io, arguments, std::move(*names), std::move(*request)).run();
}

ExitCode run_abort(CliIo& io, const std::string& name) {
    auto client = ControlClient::connect(io.paths, name);
    if (!client) return complain(io, client.error());
    const auto answer = client->call({{"command", "abort"}}, Deadline::after(kShortAnswer));
    if (!answer) return complain(io, answer.error());
    const std::string update = text_at(*answer, "/update");
    if (update.empty()) {
        io.out << name << ": nothing to do: no update is under way\n";
        return ExitCode::kNothingToDo;
    }
    io.out << name << ": asked update " << update << " to stop; see `liveupdate history " << name << "`\n";
    return ExitCode::kDone;
}

void add_options(CLI::App& command, const std::shared_ptr<UpdateArguments>& a) {
    command.add_option("NAME", a->names, "the VMs, by name");
    command.add_flag("--all", a->all, "every VM that runs");
    command.add_option("--max-parallel", a->rollout.most_at_once, "so many VMs at once")
        ->check(CLI::Range(size_t{1}, size_t{256}))
        ->capture_default_str();
    command.add_option("--canary", a->rollout.canaries,
        "so many VMs first; the others only after these have completed, probation included");
    command.add_flag("--keep-going", a->keep_going, "begin further VMs after one has failed");
    command.add_option("--way", a->way,
        "of QEMU guests: x-ignore-shared, cpr-transfer or postcopy, instead of the best that fits");
    command.add_option("--timeout", a->timeout, "limit of preparing and rehearsing, for example 30s");
    command.add_flag("--json", a->json, "print one JSON document at the end and nothing else");
}

void set_action(CLI::App& command, const std::shared_ptr<UpdateArguments>& arguments, Action& chosen) {
    command.callback([arguments, &chosen] {
        if (arguments->keep_going) arguments->rollout.after_failure = AfterFailure::kGoOn;
        chosen = [arguments](CliIo& io) { return run_update(io, *arguments); };
    });
}

void add_update(CLI::App& app, Action& chosen, const char* name, const char* description, UpdateKind kind) {
    const auto arguments = std::make_shared<UpdateArguments>();
    arguments->kind = kind;
    CLI::App& command = *app.add_subcommand(name, description);
    add_options(command, arguments);
    if (kind != UpdateKind::kRollback) {
        command.add_option(
            "--binary", arguments->binary, "the VMM binary to change to, instead of the configured one");
        command.add_flag("--if-outdated", arguments->if_outdated,
            "only VMs whose binary on disk has another build-id than the one that runs");
    }
    if (kind == UpdateKind::kUpdate) command.add_flag("--dry-run", arguments->dry_run, "the same as `plan`");
    set_action(command, arguments, chosen);
}

} // namespace

void add_update_commands(CLI::App& app, Action& chosen) {
    add_update(
        app, chosen, "now", "Update the VMM of running VMs to the binary on disk", UpdateKind::kUpdate);
    add_update(app, chosen, "plan", "Do all of an update but the switchover, and predict its blackout",
        UpdateKind::kPlan);
    add_update(app, chosen, "rollback", "Go back to the binary that ran before", UpdateKind::kRollback);

    CLI::App& abort = *app.add_subcommand("abort", "Stop the update of a VM that is under way");
    const auto name = std::make_shared<std::string>();
    abort.add_option("NAME", *name, "the VM")->required();
    abort.callback([name, &chosen] { chosen = [name](CliIo& io) { return run_abort(io, *name); }; });
}

} // namespace liveupdate::supervisor::cli
