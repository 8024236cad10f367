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
#include "supervisor/guest_files.hpp"
#include "supervisor/open_binary.hpp"
#include "supervisor/paths.hpp"
#include "supervisor/record.hpp"
#include "supervisor/vmm_process.hpp"

namespace liveupdate::supervisor {

// A fault for tests: whom to strike, when and how.
struct FaultRequest {
    handoff::Phase phase{};
    handoff::Party victim{};
    handoff::FaultAction action{};
};

struct UpdateRequest {
    UpdateKind kind = UpdateKind::kUpdate;
    OpenBinary binary;
    std::chrono::microseconds timeout{}; // preparing and rehearsing together
    std::optional<FaultRequest> fault;
};

class Update {
public:
    struct Context {
        const VmConfig& config;
        const Paths& paths;
        GuestFiles& files;
        VmmProcess& source; // after run(): the VMM that runs the guest, or none when it is lost
        int cancel_fd;
        // Called as phases begin, on the update's thread.
        std::function<void(handoff::Phase, uint64_t elapsed_us)> on_phase;
        // Called once the destination answers, before it is given anything, on the update's thread.
        std::function<void(const VmmProcess& destination)> on_spawned;
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

    void enter(handoff::Phase phase);
    void close_phase();
    uint64_t elapsed_us() const;
    handoff::proto::Fault fault_for(std::initializer_list<handoff::Phase> executed_here) const;
    Result<void> reach(handoff::Phase phase);

    Context at_;
    UpdateRequest request_;
    UpdateRecord record_;
    uint64_t began_ns_;
    Deadline deadline_;
    handoff::Phase phase_ = handoff::Phase::kNegotiating;
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
