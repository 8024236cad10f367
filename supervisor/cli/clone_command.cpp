// `liveupdate clone`: guests that go on from a template's moment, each by itself.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>

#include "handoff/base/fd.hpp"
#include "supervisor/cli/commands.hpp"
#include "supervisor/cli/control_client.hpp"
#include "supervisor/cli/start_wait.hpp"
#include "supervisor/cli/supervisor_process.hpp"
#include "supervisor/cli/vms.hpp"
#include "supervisor/clone_config.hpp"
#include "supervisor/config.hpp"
#include "supervisor/disk_copy.hpp"
#include "supervisor/saved_disks.hpp"
#include "supervisor/template_store.hpp"
#include "supervisor/units.hpp"

namespace liveupdate::supervisor::cli {
namespace {

constexpr unsigned kMostClones = 4096;
// Started and not up yet: enough to keep a few CPUs busy, few enough that each is up soon.
constexpr size_t kAtOnce = 8;
constexpr size_t kMarkRead = 4096;

struct CloneArguments {
    std::string source;
    std::vector<std::string> names;
    std::vector<std::string> taps;
    unsigned count = 0; // 0: one for each name
    std::string timeout = "60s";
};

struct Clone {
    std::string name;
    std::vector<std::string> taps;
};

// "web" and 3: web-1, web-2, web-3.
Result<std::vector<std::string>> names_of(const CloneArguments& arguments) {
    if (arguments.count == 0) return checked_names(arguments.names);
    if (arguments.names.size() != 1)
        return Error(ErrorCode::kInvalid, "--count is for one NAME, which gets -1, -2 and so on behind it");
    std::vector<std::string> names;
    for (unsigned i = 1; i <= arguments.count; ++i)
        names.push_back(arguments.names.front() + "-" + std::to_string(i));
    return checked_names(names);
}

std::string replaced(std::string text, const std::string& number) {
    for (size_t at = 0; (at = text.find('%', at)) != std::string::npos; at += number.size())
        text.replace(at, 1, number);
    return text;
}

// One tap for each card of each clone: one after the other, or, with a % in them, one for each card.
Result<std::vector<Clone>> plan(const CloneArguments& arguments, size_t cards) {
    TRY_ASSIGN(const auto names, names_of(arguments));
    const bool pattern = std::any_of(arguments.taps.begin(), arguments.taps.end(),
        [](const std::string& tap) { return tap.find('%') != std::string::npos; });
    const size_t wanted = pattern ? cards : cards * names.size();
    if (arguments.taps.size() != wanted)
        return Error(ErrorCode::kInvalid, "the template has " + std::to_string(cards) +
                                              " network cards, and " + std::to_string(names.size()) +
                                              " clones of it need --tap " + std::to_string(wanted) +
                                              " times, not " + std::to_string(arguments.taps.size()) +
                                              "; a % in a tap's name becomes the clone's number");
    std::vector<Clone> clones;
    for (size_t i = 0; i < names.size(); ++i) {
        Clone& clone = clones.emplace_back(Clone{names[i], {}});
        for (size_t card = 0; card < cards; ++card)
            clone.taps.push_back(pattern ? replaced(arguments.taps[card], std::to_string(i + 1))
                                         : arguments.taps[i * cards + card]);
    }
    return clones;
}

// A VM file of that name is left alone unless it is a former clone's.
Result<void> check_free(const CliIo& io, const std::string& name) {
    if (ControlClient::connect(io.paths, name))
        return Error(ErrorCode::kRefused, name + " runs already; stop it, or choose another name");
    const std::string path = io.paths.config(name);
    if (::access(path.c_str(), F_OK) < 0) return {};
    TRY_ASSIGN(const UniqueFd file, fd::open(path, O_RDONLY));
    std::string begin(kMarkRead, '\0');
    const ssize_t got = ::read(file.get(), begin.data(), begin.size());
    begin.resize(got < 0 ? 0 : static_cast<size_t>(got));
    if (begin.starts_with(kCloneMark)) return {};
    return Error(ErrorCode::kRefused,
        "there is a VM '" + name + "' that is no clone: " + path + "; choose another name");
}

// The clone's own copies of the disks that the template holds, in place of a former clone's.
Result<std::vector<std::string>> copy_disks(CliIo& io, const Template& source, const std::string& name) {
    const auto& disks = source.save->guest().manifest().machine().disks();
    std::vector<std::string> copies(static_cast<size_t>(disks.size()));
    for (size_t i = 0; i < copies.size(); ++i) {
        if (disks[static_cast<int>(i)].read_only()) continue;
        TRY(make_directories(io.paths.vm_state_dir(name)));
        TRY_ASSIGN(const UniqueFd disk, fd::open(saved_disk(source.directory, i), O_RDONLY));
        copies[i] = saved_disk(io.paths.vm_state_dir(name), i);
        ::unlink(copies[i].c_str());
        TRY_ASSIGN(const DiskCopy copy, copy_disk(disk.get(), copies[i], CopyWay::kAny));
        if (!copy.shares)
            io.err << name << ": disk" << i << ": " << human_size(copy.bytes)
                   << " copied, since this file system cannot share blocks (reflink)\n";
    }
    return copies;
}

// Whole under its name at once; on the disk only when it has been synced.
Result<UniqueFd> write_vm_file(const std::string& path, const std::string& text) {
    const std::string beside = path + ".new";
    TRY_ASSIGN(UniqueFd file, fd::open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0640));
    TRY(fd::write_all(file.get(), text.data(), text.size()));
    if (::rename(beside.c_str(), path.c_str()) < 0) return Error::from_errno("rename " + beside);
    return file;
}

Result<SupervisorProcess> start(CliIo& io, const Template& source, const Clone& clone) {
    TRY(check_free(io, clone.name));
    CloneFacts facts{clone.name, source.name, clone.taps, {}};
    TRY_ASSIGN(facts.disks, copy_disks(io, source, clone.name));
    TRY_ASSIGN(const std::string text, clone_config(source.save->guest().config(), source.vm_file, facts));
    const std::string path = io.paths.config(clone.name);
    TRY(parse_vm_config(text, path));
    TRY(make_directories(io.paths.config_dir));
    TRY_ASSIGN(const UniqueFd file, write_vm_file(path, text).context("write the clone's VM file"));
    TRY(make_directories(io.paths.vm_runtime_dir(clone.name)));
    TRY_ASSIGN(SupervisorProcess process,
        SupervisorProcess::spawn(io.supervisor_program, path, io.paths.supervisor_log(clone.name),
            {"--restore", source.directory, "--mapped", "--clone"}));
    // Meanwhile: it may take as long as all the rest.
    if (::fsync(file.get()) < 0)
        io.err << "note: " << Error::from_errno("sync " + path).message << "; " << clone.name << " runs\n";
    return process;
}

// In their order, several at once; the first that does not start ends it, and those that run stay.
ExitCode run_all(CliIo& io, const Template& source, const std::vector<Clone>& clones, Deadline deadline) {
    std::vector<SupervisorProcess> started;
    ExitCode code = ExitCode::kDone;
    for (size_t up = 0; up < clones.size() && (code == ExitCode::kDone || up < started.size()); ++up) {
        while (code == ExitCode::kDone && started.size() < std::min(clones.size(), up + kAtOnce)) {
            auto process = start(io, source, clones[started.size()]);
            if (!process) {
                code = complain(io, Error(process.error()).context(clones[started.size()].name));
                break;
            }
            started.push_back(std::move(*process));
        }
        if (up < started.size())
            code = worst(code, wait_until_running(io, clones[up].name, started[up], deadline));
    }
    if (code != ExitCode::kDone && started.size() < clones.size())
        io.err << "liveupdate: " << clones.size() - started.size() << " of " << clones.size()
               << " clones have not been started\n";
    return code;
}

ExitCode run_clone(CliIo& io, const CloneArguments& arguments) {
    const auto timeout = parse_duration(arguments.timeout).context("--timeout");
    if (!timeout) return complain(io, timeout.error());
    const auto source = TemplateStore(io.paths).open(arguments.source);
    if (!source) return complain(io, source.error());
    const auto cards = static_cast<size_t>(source->save->guest().manifest().machine().nets_size());
    const auto clones = plan(arguments, cards);
    if (!clones) return complain(io, clones.error());
    return run_all(io, *source, *clones, Deadline::after(*timeout));
}

} // namespace

void add_clone_command(CLI::App& app, Action& chosen) {
    CLI::App& clone = *app.add_subcommand("clone", "Start guests that go on from a template's moment");
    const auto arguments = std::make_shared<CloneArguments>();
    clone.add_option("TEMPLATE", arguments->source, "the template")->required();
    clone.add_option("NAME", arguments->names, "the clones' names")->required();
    clone.add_option("--count", arguments->count, "so many, called NAME-1, NAME-2 and so on")
        ->check(CLI::Range(1u, kMostClones));
    clone.add_option("--tap", arguments->taps,
        "a tap device for each card of each clone; a % in it becomes the clone's number");
    clone.add_option("--timeout", arguments->timeout, "how long to wait until all run")
        ->capture_default_str();
    clone.callback(
        [arguments, &chosen] { chosen = [arguments](CliIo& io) { return run_clone(io, *arguments); }; });
}

} // namespace liveupdate::supervisor::cli
