#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>

#include "handoff/base/fd.hpp"
#include "supervisor/cli/app.hpp"
#include "supervisor/cli/commands.hpp"
#include "supervisor/qemu/foreign_qemu.hpp"
#include "supervisor/units.hpp"

namespace liveupdate::supervisor::cli {
namespace {

constexpr auto kAnswerTime = std::chrono::seconds(10);

struct AdoptArguments {
    std::string name;
    std::string monitor;
    bool dry_run = false;
};

Result<std::string> absolute_path(const std::string& path) {
    std::error_code problem;
    const auto absolute = std::filesystem::absolute(path, problem);
    if (problem) return Error(ErrorCode::kInvalid, "--qmp " + path + ": " + problem.message());
    return absolute.lexically_normal().string();
}

// The VM file, and what its supervisor finds the QEMU by.
Result<void> hand_over(
    const Paths& paths, const std::string& name, const qemu::ForeignQemu& found, const std::string& monitor) {
    TRY(make_directories(paths.config_dir));
    TRY(make_directories(paths.vm_runtime_dir(name)));
    TRY(qemu::keep_adopted(paths.vm_runtime_dir(name) + "/qemu", found.adopted, monitor));
    return fd::write_file_atomically(paths.config(name), qemu::vm_file_of(found), 0640);
}

ExitCode run_adopt(CliIo& io, const AdoptArguments& arguments) {
    if (const auto good = check_vm_name(arguments.name); !good) return complain(io, good.error());
    if (::access(io.paths.config(arguments.name).c_str(), F_OK) == 0)
        return complain(io, Error(ErrorCode::kRefused, "there is a VM '" + arguments.name +
                                                           "' already: " + io.paths.config(arguments.name) +
                                                           "; choose another name"));
    const auto monitor = absolute_path(arguments.monitor);
    if (!monitor) return complain(io, monitor.error());
    const auto found = qemu::inspect_foreign(*monitor, Deadline::after(kAnswerTime));
    if (!found) return complain(io, found.error());
    io.out << arguments.name << ": QEMU " << printable(found->version) << ", pid " << found->adopted.pid
           << ", " << found->vcpus << (found->vcpus == 1 ? " vCPU, " : " vCPUs, ")
           << human_size(found->memory) << '\n';
    for (const std::string& obstacle : found->obstacles)
        io.err << "  in the way of an update: " << printable(obstacle) << '\n';
    if (!found->obstacles.empty())
        return complain(
            io, Error(ErrorCode::kRefused, arguments.name + " is not adopted; the guest was not touched"));
    io.out << "  updates by " << to_string(found->way.way) << ": " << found->way.why << '\n' << std::flush;
    if (arguments.dry_run) return ExitCode::kDone;
    if (const auto handed = hand_over(io.paths, arguments.name, *found, *monitor); !handed)
        return complain(io, handed.error());
    const ExitCode started = run_command(io, {"start", arguments.name});
    // Nothing of ours is left beside a guest that is not ours.
    if (started != ExitCode::kDone) ::unlink(io.paths.config(arguments.name).c_str());
    return started;
}

} // namespace

void add_adopt_command(CLI::App& app, Action& chosen) {
    CLI::App& adopt = *app.add_subcommand("adopt", "Take over a QEMU that something else has started");
    const auto arguments = std::make_shared<AdoptArguments>();
    adopt.add_option("NAME", arguments->name, "what the VM is to be called")->required();
    adopt.add_option("--qmp", arguments->monitor, "a QMP socket of it that nobody else is connected to")
        ->required();
    adopt.add_flag("--dry-run", arguments->dry_run, "only say what stands in the way");
    adopt.callback(
        [arguments, &chosen] { chosen = [arguments](CliIo& io) { return run_adopt(io, *arguments); }; });
}

} // namespace liveupdate::supervisor::cli
