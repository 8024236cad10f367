// The VMM's side of the session protocol: a plain blocking loop in one thread.
//
// A VMM process is given a listening socket. The supervisor connects, says Hello, and then either launches a
// guest here, makes this process the destination of an update, or finds a guest running. When a supervisor
// goes away, an owner keeps its guest running and waits for the next one; a process that has no guest, or
// has lost it, exits.
//
//   supervisor            source                       destination
//      │ Hello/Offer ───────┤ ─────────────────────────────┤
//      │ Describe ─────────►│ Description                  │
//      │ Prepare ──────────────────────────────────────────►│ Prepared
//      │ SaveTrial ────────►│ TrialSaved                   │
//      │ LoadTrial ────────────────────────────────────────►│ TrialLoaded
//      │ Arm ──────────────────────────────────────────────►│ Armed
//      │ Switchover ───────►│ ··· area and baton ···········│      no message here
//      │◄───────── Switched │                      Switched │
//      │ Release ──────────►│ exits                        │ runs the guest
#pragma once

#include <memory>

#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"
#include "handoff/guest.hpp"

namespace liveupdate::handoff {

class VmmSession {
public:
    // `vmm` outlives the session.
    VmmSession(UniqueFd listening_socket, Vmm& vmm);
    ~VmmSession();

    // Serves until the process has nothing left to do. The value is the exit status for the process.
    Result<int> run();

private:
    class State;
    std::unique_ptr<State> state_;
};

} // namespace liveupdate::handoff
