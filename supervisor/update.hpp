// One update of one guest, from the spawn of the destination to the end of the source. run() is the whole
// path, top to bottom; each phase is one function.
//
// Runs on a thread of its own and blocks there; everything that may take long has a deadline, and abort()
// (through the cancel fd) ends every wait before the switchover.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "handoff/fault.hpp"
#include "handoff/negotiation.hpp"
#include "handoff/phase.hpp"
#include "supervisor/config.hpp"
#include "supervisor/guest_driver.hpp"
#include "supervisor/guest_files.hpp"
#include "supervisor/open_binary.hpp"
#include "supervisor/paths.hpp"
#include "supervisor/record.hpp"
#include "supervisor/update_log.hpp"
#include "supervisor/update_request.hpp"
#include "supervisor/vmm_process.hpp"

namespace liveupdate::supervisor {

class Update {
public:
    struct Context {
        const VmConfig& config;
        const Paths& paths;
        GuestFiles& files;
        VmmProcess& source; // after run(): the VMM that runs the guest, or none when it is lost
        const UpdateHooks& hooks;
    };

    Update(Context context, UpdateRequest request, std::string id);

    UpdateRecord run();

    // After a completed run(): the binary that ran before.
    std::optional<OpenBinary> take_previous() { return std::move(previous_); }

private:
    Result<void> negotiate();
    Result<void> prepare();
    Result<void> rehearse();
    Result<void> switch_over();
    Result<void> watch_probation();
    void complete();

    Result<void> settle(Deadline deadline);
    void commit();
    void note_switched(const handoff::proto::Switched& switched);
    void end_with(const Error& error);
    void throw_away();
    void abandon();
    void tell_source_it_is_off();
    Outcome outcome_before_pause(const Error& error) const;
    bool wants_rehearsal() const;

    handoff::proto::Fault fault_for(std::initializer_list<handoff::Phase> executed_here) const;
    Result<void> reach(handoff::Phase phase);

    Context at_;
    UpdateRequest request_;
    UpdateLog log_;
    Deadline deadline_;
    VmmProcess destination_;
    handoff::Agreement agreement_;
    std::string fixed_state_;
    handoff::NamedFds source_fds_; // what only the source had, on its way to the destination
    UniqueFd transfer_;
    bool committed_ = false;
    bool paused_ = false;
    std::optional<OpenBinary> previous_;
};

} // namespace liveupdate::supervisor
