#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "handoff/base/fd.hpp"
#include "supervisor/cli/commands.hpp"
#include "supervisor/cli/console_relay.hpp"
#include "supervisor/cli/interrupt.hpp"
#include "supervisor/cli/json_view.hpp"
#include "supervisor/cli/start_command.hpp"
#include "supervisor/cli/vms.hpp"

namespace liveupdate::supervisor::cli {
namespace {

constexpr int kFollowMs = 200;

// A terminal in raw mode, put back at the end; a file or a pipe is left alone.
class RawMode {
public:
    explicit RawMode(int terminal) : terminal_(terminal) {
        termios mode{};
        if (::tcgetattr(terminal, &mode) < 0) return;
        former_ = mode;
        ::cfmakeraw(&mode);
        ::tcsetattr(terminal, TCSANOW, &mode);
    }
    RawMode(const RawMode&) = delete;
    RawMode& operator=(const RawMode&) = delete;
    ~RawMode() {
        if (former_) ::tcsetattr(terminal_, TCSANOW, &*former_);
    }

private:
    int terminal_;
    std::optional<termios> former_;
};

// The slave's own line discipline would echo the guest's output back to the guest.
void make_raw(int terminal) {
    termios mode{};
    if (::tcgetattr(terminal, &mode) < 0) return;
    ::cfmakeraw(&mode);
    ::tcsetattr(terminal, TCSANOW, &mode);
}

ExitCode relay(CliIo& io, const std::string& name, int console) {
    const bool on_terminal = ::isatty(STDIN_FILENO) != 0;
    if (on_terminal) io.err << "console of " << name << "; Ctrl-] leaves\n";
    Result<RelayEnd> end = RelayEnd::kLeft;
    {
        const InterruptGuard guard;
        const RawMode raw(STDIN_FILENO);
        end = relay_console(STDIN_FILENO, STDOUT_FILENO, console, [] { return InterruptGuard::count() > 0; });
    }
    if (!end) return complain(io, std::move(end).error().context("console of " + name));
    if (*end == RelayEnd::kConsoleClosed && on_terminal)
        io.err << "\nthe console of " << name << " was closed\n";
    return ExitCode::kDone;
}

ExitCode follow(CliIo& io, const std::string& path) {
    auto file = fd::open(path, O_RDONLY);
    if (!file) return complain(io, file.error());
    const InterruptGuard guard;
    char buffer[16384];
    while (InterruptGuard::count() == 0) {
        const ssize_t n = ::read(file->get(), buffer, sizeof(buffer));
        if (n < 0 && errno != EINTR) return complain(io, Error::from_errno("read " + path));
        if (n > 0 && !fd::write_all(STDOUT_FILENO, buffer, static_cast<size_t>(n))) return ExitCode::kDone;
        if (n == 0) ::poll(nullptr, 0, kFollowMs);
    }
    return ExitCode::kDone;
}

ExitCode run_console(CliIo& io, const std::string& name) {
    const auto status = vm_status(io.paths, name);
    if (!status) return complain(io, status.error());
    if (!find(*status, "/console")) return complain(io, not_running(io.paths, name));
    const std::string type = text_at(*status, "/console/type");
    const std::string path = text_at(*status, "/console/path");
    if (type == "file") return follow(io, path);
    if (type != "pty" && type != "socket")
        return complain(
            io, Error(ErrorCode::kInvalid, "'" + name + "' has no console; set another type than \"" + type +
                                               "\" in [console] of its file"));
    auto console = type == "pty" ? fd::open(path, O_RDWR | O_NOCTTY) : fd::unix_connect(path, SOCK_STREAM);
    if (!console) return complain(io, std::move(console).error().context("console of " + name));
    if (type == "pty") make_raw(console->get());
    return relay(io, name, console->get());
}

} // namespace

void add_console_command(CLI::App& app, Action& chosen) {
    CLI::App& console = *app.add_subcommand("console", "The console of a VM; Ctrl-] leaves");
    const auto name = std::make_shared<std::string>();
    console.add_option("NAME", *name, "the VM")->required();
    console.callback([name, &chosen] { chosen = [name](CliIo& io) { return run_console(io, *name); }; });
}

} // namespace liveupdate::supervisor::cli
