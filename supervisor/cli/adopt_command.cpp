#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>

#include "handoff/base/fd.hpp"
#include "supervisor/cli/app.hpp"
#include "supervisor/cli/commands.hpp"
#include "supervisor/qemu/foreign_qemu.hpp"
#include "supervisor/qemu/qemu_folder.hpp"
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

std::string qemu_folder(const Paths& paths, const std::string& name) {
    return paths.vm_runtime_dir(name) + "/qemu";
}

bool has_supervisor(const Paths& paths, const std::string& name) {
    const auto file = fd::open(paths.supervisor_pid(name), O_RDONLY);
    return file && ::flock(file->get(), LOCK_SH | LOCK_NB) < 0;
}

bool has_vmm(const std::string& folder) {
    std::error_code problem;
    for (const auto& entry : std::filesystem::directory_iterator(folder, problem)) {
        const std::string file = entry.path().filename();
        if (file.starts_with("vmm-") && file.ends_with(".sock")) return true;
    }
    return false;
}

// Its folder has the only way to a guest that runs under that name.
Result<void> check_nobody_runs(const Paths& paths, const std::string& name, pid_t adopted) {
    const std::string folder = paths.vm_runtime_dir(name);
    const auto refuse = [&](const std::string& who) {
        return Error(
            ErrorCode::kRefused, who + ", though '" + name +
                                     "' has no VM file; choose another name, or stop that one (its sockets "
                                     "are in " +
                                     folder + ")");
    };
    if (has_supervisor(paths, name)) return refuse("a supervisor of '" + name + "' runs");
    if (has_vmm(folder)) return refuse("a VMM of '" + name + "' may run");
    if (::access(qemu_folder(paths, name).c_str(), F_OK) < 0) return {};
    TRY_ASSIGN(
        const bool nobody, qemu::QemuFolder(qemu_folder(paths, name)).nobody_lives(Deadline::after({})));
    if (!nobody) return refuse("a QEMU of '" + name + "' runs");
    TRY_ASSIGN(const auto other, qemu::find_adopted(qemu_folder(paths, name)));
    if (other && other->pid != adopted)
        return refuse("the QEMU with pid " + std::to_string(other->pid) + " was adopted as '" + name + "'");
    return {};
}

// The VM file, and what its supervisor finds the QEMU by.
Result<void> hand_over(
    const Paths& paths, const std::string& name, const qemu::ForeignQemu& found, const std::string& monitor) {
    TRY(make_directories(paths.config_dir));
    TRY(make_directories(paths.vm_runtime_dir(name)));
    TRY(qemu::keep_adopted(qemu_folder(paths, name), found.adopted, monitor));
    return fd::write_file_atomically(paths.config(name), qemu::vm_file_of(found), 0640);
}

// Nothing of ours is left beside a guest that is not ours.
void take_back(const Paths& paths, const std::string& name) {
    ::unlink(paths.config(name).c_str());
    qemu::drop_adopted(qemu_folder(paths, name));
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
    if (const auto free = check_nobody_runs(io.paths, arguments.name, found->adopted.pid); !free)
        return complain(io, free.error());
    for (const std::string& obstacle : found->obstacles)
        io.err << "  in the way of an update: " << printable(obstacle) << '\n';
    if (!found->obstacles.empty())
        return complain(
            io, Error(ErrorCode::kRefused, arguments.name + " is not adopted; the guest was not touched"));
    io.out << "  updates by " << to_string(found->way.way) << ": " << found->way.why << '\n' << std::flush;
    if (arguments.dry_run) return ExitCode::kDone;
    if (const auto handed = hand_over(io.paths, arguments.name, *found, *monitor); !handed) {
        take_back(io.paths, arguments.name);
        return complain(io, handed.error());
    }
    const ExitCode started = run_command(io, {"start", arguments.name});
    // One that is still at it needs all of it.
    if (started != ExitCode::kDone && !has_supervisor(io.paths, arguments.name))
        take_back(io.paths, arguments.name);
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
