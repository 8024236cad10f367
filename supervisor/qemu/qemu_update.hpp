// One update of a QEMU guest, from the spawn of the destination to the end of the source. run() is the whole
// path, top to bottom; each phase is one function. The way is QEMU's migration over a unix socket of its own
// device state alone: RAM is shared (the capability x-ignore-shared).
//
// Who may run the guest: the source, until the baton's word names the destination. The destination is started
// stopped, so that it holds a loaded guest that does not run; the source has then ended its migration and
// does not run it again by itself. Only then the word moves, and only then the destination is told to run.
//
// Runs on a thread of its own and blocks there; everything that may take long has a deadline.
#pragma once

#include <optional>
#include <string>

#include "supervisor/guest_driver.hpp"
#include "supervisor/qemu/qemu_guest.hpp"
#include "supervisor/update_log.hpp"

namespace liveupdate::supervisor::qemu {

class QemuUpdate {
public:
    struct Context {
        const VmConfig& config;
        const MonitorFolder& folder;
        QemuGuest& guest;
        QemuProcess& source; // after run(): the QEMU that runs the guest, or none when it is lost
        const UpdateHooks& hooks;
    };

    QemuUpdate(Context context, UpdateRequest request, std::string id);

    UpdateRecord run();

    // After a completed run(): the binary that ran before.
    std::optional<OpenBinary> take_previous() { return std::move(previous_); }

private:
    Result<void> negotiate();
    Result<void> prepare();
    Result<void> switch_over();
    Result<void> commit();
    Result<void> watch_probation();
    void complete();

    Result<void> check_source();
    Result<void> await_transfer();
    Result<bool> note_events(QemuProcess& qemu, bool& completed);
    void note_blackout();
    void end_with(const Error& error);
    void lose(const Error& error);
    Result<void> take_back();
    Outcome outcome_before_pause(const Error& error) const;
    Result<void> reach(handoff::Phase phase);

    Context at_;
    UpdateRequest request_;
    UpdateLog log_;
    Deadline deadline_;
    QemuProcess destination_;
    bool offered_ = false;
    bool ran_ = false;                                // the destination may have executed guest code
    std::optional<uint64_t> stopped_us_, resumed_us_; // by QEMU's clock
    bool source_completed_ = false, destination_completed_ = false;
    std::optional<OpenBinary> previous_;
};

} // namespace liveupdate::supervisor::qemu
