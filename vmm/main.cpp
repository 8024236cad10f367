// liveupdate-vmm: the reference VMM. Started by liveupdated with a listening socket as an inherited fd; from
// then on everything comes through sessions on it, and nothing is opened by path. A lazy restore from an NBD
// server connects to that by itself: docs/adr/0011-libnbd-is-loaded-when-needed.md.
#include <signal.h>
#include <sys/prctl.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "handoff/build_id.hpp"
#include "handoff/session.hpp"
#include "liveupdate_version.hpp"
#include "vmm/reference_vmm.hpp"
#include "vmm/vcpu_thread.hpp"

// A test build of the same source may call itself something else, as the next release would.
#ifndef LIVEUPDATE_VMM_VERSION
#define LIVEUPDATE_VMM_VERSION liveupdate::kVersion
#endif

int main(int argc, char** argv) {
    CLI::App app{"The liveupdate reference VMM. It is started by liveupdated, not by hand."};
    const std::string version(LIVEUPDATE_VMM_VERSION);
    int session_fd = -1;
    app.add_option("--session-fd", session_fd, "Inherited listening socket (SOCK_SEQPACKET) for sessions");
    app.set_version_flag(
        "--version", "liveupdate-vmm " + version + "\nbuild-id " + liveupdate::handoff::own_build_id());
    CLI11_PARSE(app, argc, argv);
    if (session_fd < 3) {
        std::fputs(
            "liveupdate-vmm: there is no session socket; start guests with `liveupdate start`\n", stderr);
        return 2;
    }
    ::signal(SIGPIPE, SIG_IGN);
    ::signal(SIGHUP, SIG_IGN);
    ::prctl(PR_SET_NAME, "liveupdate-vmm"); // also when it was started by file descriptor
    liveupdate::vmm::install_kick_signal();
    liveupdate::vmm::ReferenceVmm vmm(version);
    liveupdate::handoff::VmmSession session(liveupdate::UniqueFd(session_fd), vmm);
    auto status = session.run();
    if (!status) {
        std::fprintf(stderr, "liveupdate-vmm: %s\n", status.error().message.c_str());
        return 1;
    }
    return *status;
}
