// liveupdated: the supervisor of one VM.
#include <fcntl.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <systemd/sd-event.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "handoff/base/fd.hpp"
#include "liveupdate_version.hpp"
#include "supervisor/access.hpp"
#include "supervisor/config.hpp"
#include "supervisor/exit_code.hpp"
#include "supervisor/journal.hpp"
#include "supervisor/paths.hpp"
#include "supervisor/service.hpp"
#include "supervisor/units.hpp"
#include "supervisor/vm.hpp"
#include "systemd/event_loop.hpp"
#include "systemd/notify.hpp"

namespace {

using namespace liveupdate;
using namespace liveupdate::supervisor;

constexpr auto kLockTime = std::chrono::seconds(2);

// One supervisor for a VM: the lock goes with the process.
Result<UniqueFd> lock_vm(const VmConfig& config, const Paths& paths) {
    const std::string directory = paths.vm_runtime_dir(config.name);
    TRY(make_directories(directory));
    // Whatever the umask is: those whom [policy] lets in must reach the control socket, and all others be
    // told who they are. Each socket says itself who may connect.
    if (::chmod(directory.c_str(), 0755) < 0) return Error::from_errno("chmod " + directory);
    TRY_ASSIGN(UniqueFd file, fd::open(paths.supervisor_pid(config.name), O_RDWR | O_CREAT, 0644));
    // A supervisor that has just been told to stop may hold it for a moment longer.
    const Deadline deadline = Deadline::after(kLockTime);
    while (::flock(file.get(), LOCK_EX | LOCK_NB) < 0) {
        if (deadline.passed()) return Error(ErrorCode::kRefused, config.name + " has a supervisor already");
        ::usleep(10'000);
    }
    const std::string pid = std::to_string(::getpid()) + "\n";
    if (::ftruncate(file.get(), 0) < 0) return Error::from_errno("write the pid file");
    TRY(fd::write_all(file.get(), pid.data(), pid.size()));
    return file;
}

Result<int> supervise(const std::string& config_path, const std::optional<RestoreRequest>& restore) {
    TRY_ASSIGN(const VmConfig config, load_vm_config(config_path));
    TRY_ASSIGN(const Paths paths, resolve_paths());
    TRY_ASSIGN(const UniqueFd lock, lock_vm(config, paths));
    TRY(make_directories(paths.vm_state_dir(config.name)));
    TRY_ASSIGN(History history, History::open(paths.history(config.name)));
    for (const std::string& warning : history.warnings())
        spdlog::warn("{}: {}", config.name, warning);
    TRY_ASSIGN(AccessPolicy access, resolve_access(config.owner, config.group));

    std::vector<std::string> warnings;
    Service service = Service::of_this_process(config.name, warnings);
    for (const std::string& warning : warnings)
        spdlog::warn("{}: {}", config.name, warning);
    handoff::NamedFds kept = service.take_kept();
    UniqueFd control = std::move(kept["control"]);
    kept.erase("control");

    TRY_ASSIGN(const auto loop, systemd::EventLoop::create());
    VmSupervisor vm(*loop, config, paths, std::move(history), service);
    TRY_ASSIGN(const auto term, loop->add_signal(SIGTERM, [&](const signalfd_siginfo&) { vm.stop(); }));
    TRY_ASSIGN(const auto interrupt, loop->add_signal(SIGINT, [&](const signalfd_siginfo&) { vm.stop(); }));
    systemd::Source hangup;
    // Of a terminal it means what it always does.
    if (systemd::has_manager()) {
        TRY_ASSIGN(hangup, loop->add_signal(SIGHUP, [&](const signalfd_siginfo&) { vm.reload(); }));
    }
    TRY(vm.start(std::move(kept), restore));
    ControlServerOptions options;
    options.path = paths.control_socket(config.name);
    options.access = std::move(access);
    TRY_ASSIGN(const auto server, ControlServer::create(*loop, vm, std::move(options), std::move(control)));
    vm.listen_on(server->listener());
    if (sd_event_set_watchdog(loop->native(), 1) < 0)
        spdlog::warn("{}: the service manager's watchdog is not served", config.name);
    return loop->run();
}

// 75 (EX_TEMPFAIL): a VMM lives that cannot be adopted now; the unit file asks for another start.
int exit_status(ErrorCode code) {
    if (code == ErrorCode::kInvalid) return 2;
    if (code == ErrorCode::kRefused || code == ErrorCode::kUnsupported) return 4;
    return code == ErrorCode::kBusy ? 75 : 1;
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app{
        "The supervisor of one VM: runs its VMM and updates it in place. `liveupdate start` starts it."};
    std::string config, saved, ram_timeout;
    bool foreground = false, lazy = false, mapped = false, clone = false;
    app.add_option("--config", config, "The VM's TOML file")->required();
    app.add_option("--restore", saved,
        "A folder, or the URI of an NBD export: start the guest that was saved there, "
        "instead of a new one");
    const auto lazy_flag = app.add_flag("--lazy", lazy, "With --restore: RAM comes while the guest runs");
    app.add_flag("--mapped", mapped, "With --restore: RAM comes when it is touched, and not before")
        ->excludes(lazy_flag);
    app.add_option("--ram-timeout", ram_timeout,
           "With --lazy from an NBD server: how long the guest may wait for it (5m)")
        ->needs(lazy_flag);
    app.add_flag("--clone", clone, "With --restore: the guest is a copy of the saved one, and is told so");
    app.add_flag(
        "--foreground", foreground, "Stay in the foreground, which is what it always does: for unit files");
    app.set_version_flag("--version", "liveupdated " + std::string(kVersion));
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& e) {
        return app.exit(e) == 0 ? 0 : 2;
    }
    ::signal(SIGPIPE, SIG_IGN);
    open_log();
    std::optional<RestoreRequest> restore;
    const auto patience =
        ram_timeout.empty() ? Result<std::chrono::microseconds>(kRamTimeout) : parse_duration(ram_timeout);
    if (!patience) {
        std::fprintf(stderr, "liveupdated: --ram-timeout: %s\n", patience.error().message.c_str());
        return exit_status(patience.error().code);
    }
    const RestoreRam ram = mapped ? RestoreRam::kMapped : lazy ? RestoreRam::kLazy : RestoreRam::kEager;
    if (!saved.empty())
        restore = RestoreRequest{saved, ram, clone ? Identity::kNew : Identity::kSame,
            std::chrono::ceil<std::chrono::milliseconds>(*patience)};
    auto code = supervise(config, restore);
    if (!code) {
        std::fprintf(stderr, "liveupdated: %s\n", code.error().message.c_str());
        return exit_status(code.error().code);
    }
    return *code;
}
