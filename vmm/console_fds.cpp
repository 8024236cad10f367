#include "vmm/console_fds.hpp"

#include "handoff/base/fd.hpp"

namespace liveupdate::vmm {

Result<std::unique_ptr<Console>> take_console(
    const std::string& kind, handoff::NamedFds& fds, handoff::NamedFds& kept) {
    if (kind.empty() || kind == "none") return Console::none();
    TRY_ASSIGN(UniqueFd main, handoff::take_fd(fds, "console"));
    TRY_ASSIGN(kept["console"], fd::dup(main.get()));
    // A pty's slave side, kept open so that the master never sees a hang-up.
    if (fds.contains("console-slave")) {
        TRY_ASSIGN(kept["console-slave"], handoff::take_fd(fds, "console-slave"));
    }
    if (kind == "file") return Console::file(std::move(main));
    if (kind == "pty") return Console::pty(std::move(main));
    if (kind == "socket") {
        UniqueFd client;
        if (fds.contains("console-client")) {
            TRY_ASSIGN(client, handoff::take_fd(fds, "console-client"));
        }
        return Console::socket(std::move(main), std::move(client));
    }
    return Error(ErrorCode::kRefused, "this VMM knows no console of kind '" + kind + "'");
}

} // namespace liveupdate::vmm
