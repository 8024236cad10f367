#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "handoff/base/fd.hpp"
#include "handoff/save/reader.hpp"
#include "supervisor/cli/commands.hpp"
#include "supervisor/cli/control_client.hpp"
#include "supervisor/cli/save_call.hpp"
#include "supervisor/cli/start_wait.hpp"
#include "supervisor/cli/supervisor_process.hpp"
#include "supervisor/cli/vms.hpp"
#include "supervisor/save_request.hpp"
#include "supervisor/units.hpp"

namespace liveupdate::supervisor::cli {
namespace {

struct SaveArguments {
    std::string name;
    std::string directory;
    std::string timeout; // empty: the supervisor's
    bool file = false;
    bool in_place = false;
    bool live = false;
    bool stop = false;
    bool json = false;
};

struct RestoreArguments {
    std::string directory;
    std::string name;
    std::string timeout = "10m";
    bool lazy = false;
    bool mapped = false;
};

Result<std::string> absolute(const std::string& path) {
    std::error_code problem;
    const auto found = std::filesystem::absolute(path, problem);
    if (problem || path.empty())
        return Error(ErrorCode::kInvalid, "'" + path + "' is not a path of a folder");
    std::string text = found.lexically_normal().string();
    while (text.size() > 1 && text.back() == '/')
        text.pop_back();
    return text;
}

Result<nlohmann::json> save_request(const SaveArguments& arguments) {
    TRY(check_vm_name(arguments.name));
    TRY_ASSIGN(const std::string directory, absolute(arguments.directory));
    nlohmann::json request = {{"command", "save"}, {"directory", directory},
        {"kind", to_string(arguments.in_place ? SaveKind::kInPlace : SaveKind::kFile)},
        {"live", arguments.live}, {"stop", arguments.stop}};
    if (!arguments.timeout.empty()) {
        TRY_ASSIGN(const auto timeout, parse_duration(arguments.timeout).context("--timeout"));
        const auto ms = std::chrono::ceil<std::chrono::milliseconds>(timeout).count();
        if (ms <= 0) return Error(ErrorCode::kInvalid, "--timeout: 0 leaves no time; write for example 30s");
        request["timeout_ms"] = static_cast<uint64_t>(ms);
    }
    return request;
}

ExitCode run_save(CliIo& io, const SaveArguments& arguments) {
    const auto request = save_request(arguments);
    if (!request) return complain(io, request.error());
    ExitCode code = ExitCode::kDone;
    const auto report = call_save(io, arguments.name, *request, code);
    if (!report) return code;
    if (arguments.json) {
        print_json(io, *report);
        return ExitCode::kDone;
    }
    io.out << save_summary(*report, arguments.name) << '\n';
    print_notes(io, *report);
    return ExitCode::kDone;
}

// What the saved guest in `directory` is, as far as its file tells without RAM.
Result<handoff::proto::SavedGuest> inspect_save(const std::string& directory) {
    TRY_ASSIGN(const auto save,
        handoff::save::Reader::open(directory + "/" + std::string(handoff::save::kFileName)));
    return save->guest();
}

// The VM file of that name, or, where there is none, that of the saved guest.
Result<std::string> config_for(
    const CliIo& io, const std::string& name, const handoff::proto::SavedGuest& guest) {
    std::string path = io.paths.config(name);
    if (::access(path.c_str(), F_OK) == 0) return path;
    TRY(make_directories(io.paths.config_dir));
    TRY(fd::write_file_atomically(path, guest.config()).context("write the saved VM file"));
    return path;
}

ExitCode run_restore(CliIo& io, const RestoreArguments& arguments) {
    if (const auto good = check_vm_name(arguments.name); !good) return complain(io, good.error());
    const auto directory = absolute(arguments.directory);
    if (!directory) return complain(io, directory.error());
    const auto timeout = parse_duration(arguments.timeout).context("--timeout");
    if (!timeout) return complain(io, timeout.error());
    if (ControlClient::connect(io.paths, arguments.name))
        return complain(io, Error(ErrorCode::kRefused,
                                arguments.name + " runs already; stop it, or restore under another name"));
    const auto guest = inspect_save(*directory);
    if (!guest) {
        const bool none = guest.error().system_errno == ENOENT;
        return complain(
            io, none ? Error(ErrorCode::kNotFound, guest.error().message + "; no guest has been saved there")
                     : guest.error());
    }
    const auto config = config_for(io, arguments.name, *guest);
    if (!config) return complain(io, config.error());
    if (const auto made = make_directories(io.paths.vm_runtime_dir(arguments.name)); !made)
        return complain(io, made.error());
    std::vector<std::string> more = {"--restore", *directory};
    if (arguments.lazy) more.emplace_back("--lazy");
    if (arguments.mapped) more.emplace_back("--mapped");
    auto process = SupervisorProcess::spawn(
        io.supervisor_program, *config, io.paths.supervisor_log(arguments.name), more);
    if (!process) return complain(io, process.error());
    return wait_until_running(io, arguments.name, *process, Deadline::after(*timeout));
}

} // namespace

void add_save_commands(CLI::App& app, Action& chosen) {
    CLI::App& save = *app.add_subcommand("save", "Save a guest that runs into a folder");
    const auto saving = std::make_shared<SaveArguments>();
    save.add_option("NAME", saving->name, "the VM")->required();
    save.add_option("DIR", saving->directory, "the folder; made if it is not there")->required();
    const auto file = save.add_flag("--file", saving->file, "write RAM to the file (the default)");
    const auto in_place = save.add_flag("--in-place", saving->in_place,
        "leave RAM where it is, on tmpfs or hugetlbfs, and stop the guest; DIR lies on the same file system");
    in_place->excludes(file);
    save.add_flag("--live", saving->live, "write RAM while the guest runs; it stands still for the rest")
        ->excludes(in_place);
    save.add_flag("--stop", saving->stop, "stop the guest once it is saved, instead of letting it run on");
    save.add_option("--timeout", saving->timeout,
        "how long the guest may stand still, else it runs on and is not saved (10m; 10s with --in-place)");
    save.add_flag("--json", saving->json, "print a JSON object");
    save.callback([saving, &chosen] { chosen = [saving](CliIo& io) { return run_save(io, *saving); }; });

    CLI::App& restore = *app.add_subcommand("restore", "Start a guest as it was saved");
    const auto restoring = std::make_shared<RestoreArguments>();
    restore.add_option("DIR", restoring->directory, "the folder that it was saved into")->required();
    restore.add_option("NAME", restoring->name, "the VM's name; without a VM file it gets the saved one")
        ->required();
    const auto lazy = restore.add_flag("--lazy", restoring->lazy,
        "let the guest run at once; RAM is fetched when it is touched, and in the background");
    restore
        .add_flag("--mapped", restoring->mapped,
            "let the guest run at once; RAM is fetched page by page when it is touched, and the file stays "
            "in use")
        ->excludes(lazy);
    restore.add_option("--timeout", restoring->timeout, "how long to wait until it runs")
        ->capture_default_str();
    restore.callback(
        [restoring, &chosen] { chosen = [restoring](CliIo& io) { return run_restore(io, *restoring); }; });
}

} // namespace liveupdate::supervisor::cli
