#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "handoff/base/fd.hpp"
#include "handoff/save/nbd_uri.hpp"
#include "handoff/save/reader.hpp"
#include "supervisor/cli/commands.hpp"
#include "supervisor/cli/control_client.hpp"
#include "supervisor/cli/save_call.hpp"
#include "supervisor/cli/start_wait.hpp"
#include "supervisor/cli/supervisor_process.hpp"
#include "supervisor/cli/vms.hpp"
#include "supervisor/save_request.hpp"
#include "supervisor/units.hpp"
#include "supervisor/used_save.hpp"

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
    std::string from; // a folder or a URI
    std::string name;
    std::string timeout = "10m";
    std::string ram_timeout; // empty: the supervisor's
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

Result<RestoreRequest> restore_request(const RestoreArguments& arguments) {
    RestoreRequest request;
    request.from = arguments.from;
    if (!handoff::save::is_nbd_uri(request.from)) {
        TRY_ASSIGN(request.from, absolute(arguments.from));
        if (!arguments.ram_timeout.empty())
            return Error(ErrorCode::kInvalid, "--ram-timeout is for a save that an NBD server has");
    }
    request.ram = arguments.mapped ? RestoreRam::kMapped
                  : arguments.lazy ? RestoreRam::kLazy
                                   : RestoreRam::kEager;
    if (!arguments.ram_timeout.empty()) {
        TRY_ASSIGN(const auto timeout, parse_duration(arguments.ram_timeout).context("--ram-timeout"));
        request.ram_timeout = std::chrono::ceil<std::chrono::milliseconds>(timeout);
    }
    TRY(check(request));
    return request;
}

// What the saved guest is, as far as it can be told without RAM.
Result<handoff::proto::SavedGuest> inspect_save(const RestoreRequest& request) {
    TRY_ASSIGN(const auto save, handoff::save::Reader::open(save_at(request.from)));
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
    const auto request = restore_request(arguments);
    if (!request) return complain(io, request.error());
    const auto timeout = parse_duration(arguments.timeout).context("--timeout");
    if (!timeout) return complain(io, timeout.error());
    if (ControlClient::connect(io.paths, arguments.name))
        return complain(io, Error(ErrorCode::kRefused,
                                arguments.name + " runs already; stop it, or restore under another name"));
    const auto guest = inspect_save(*request);
    if (!guest) {
        const std::string used = used_save(save_at(request->from));
        const bool interrupted = guest.error().system_errno == ENOENT && ::access(used.c_str(), F_OK) == 0;
        if (interrupted)
            return complain(
                io, Error(ErrorCode::kNotFound, guest.error().message + "; " + used +
                                                    " is there: a restore ended while it handed the guest "
                                                    "over. If the guest has not run since, "
                                                    "rename that file to " +
                                                    std::string(handoff::save::kFileName) +
                                                    "; if it has, the RAM in the folder is that guest's"));
        const bool none = guest.error().system_errno == ENOENT && !handoff::save::is_nbd_uri(request->from);
        return complain(
            io, none ? Error(ErrorCode::kNotFound, guest.error().message + "; no guest has been saved there")
                     : guest.error());
    }
    const auto config = config_for(io, arguments.name, *guest);
    if (!config) return complain(io, config.error());
    if (const auto made = make_directories(io.paths.vm_runtime_dir(arguments.name)); !made)
        return complain(io, made.error());
    std::vector<std::string> more = {"--restore", request->from};
    if (arguments.lazy) more.emplace_back("--lazy");
    if (!arguments.ram_timeout.empty()) more.insert(more.end(), {"--ram-timeout", arguments.ram_timeout});
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
        "leave RAM where it is, on tmpfs, hugetlbfs or a disk, and stop the guest; DIR lies on that file "
        "system");
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
    restore
        .add_option("DIR", restoring->from,
            "the folder that it was saved into, or the URI of an NBD export of the guest.save in it: "
            "nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH")
        ->required();
    restore.add_option("NAME", restoring->name, "the VM's name; without a VM file it gets the saved one")
        ->required();
    const auto lazy = restore.add_flag("--lazy", restoring->lazy,
        "let the guest run at once; RAM is fetched when it is touched, and in the background");
    restore
        .add_flag("--mapped", restoring->mapped,
            "let the guest run at once; RAM is fetched page by page when it is touched, and the file stays "
            "in use")
        ->excludes(lazy);
    restore
        .add_option("--ram-timeout", restoring->ram_timeout,
            "with --lazy from an NBD server: how long the guest may wait for what it has touched, before it "
            "is "
            "given up (5m)")
        ->needs(lazy);
    restore.add_option("--timeout", restoring->timeout, "how long to wait until it runs")
        ->capture_default_str();
    restore.callback(
        [restoring, &chosen] { chosen = [restoring](CliIo& io) { return run_restore(io, *restoring); }; });
}

} // namespace liveupdate::supervisor::cli
