// One update of a QEMU guest, from the spawn of the destination to the end of the source. run() is the whole
// path, top to bottom; each phase is one function. The ways that there are: ways.hpp.
//
// Who may run the guest: the source, until the baton's word names the destination. The destination is started
// stopped, so that it holds a loaded guest that does not run; the source has then ended its migration and
// does not run it again by itself. Only then the word moves, and only then the destination is told to run.
// With postcopy the guest's pages are still in the source then, and both are needed until they have crossed.
//
// Runs on a thread of its own and blocks there; everything that may take long has a deadline.
#pragma once

#include <optional>
#include <string>

#include "supervisor/guest_driver.hpp"
#include "supervisor/qemu/moved_places.hpp"
#include "supervisor/qemu/qemu_guest.hpp"
#include "supervisor/qemu/transfer.hpp"
#include "supervisor/update_log.hpp"

namespace liveupdate::supervisor::qemu {

class QemuUpdate {
public:
    struct Context {
        const VmConfig& config;
        const QemuFolder& folder;
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
    Result<void> let_run();
    Result<void> fetch_pages();
    void move_places();
    Result<void> watch_probation();
    void complete();

    Result<void> check_source();
    Result<void> spawn_destination(QemuProcess::Role role);
    Result<void> choose();
    Result<void> warn_of_deprecation();
    Result<void> await_transfer();
    Result<void> look();
    void end_with(const Error& error);
    bool has_resumed();
    void see_whether_it_ran();
    void end_after_commit(const Error& error);
    void lose(const Error& error);
    bool pages_are_lost();
    Result<void> take_back();
    Outcome outcome_before_pause(const Error& error) const;
    Result<void> reach(handoff::Phase phase);

    Context at_;
    UpdateRequest request_;
    UpdateLog log_;
    Deadline deadline_;
    QemuProcess destination_;
    std::optional<Transfer> transfer_;
    MovedPlaces places_; // the source's
    bool offered_ = false;
    bool ran_ = false; // the destination may have executed guest code
    std::optional<OpenBinary> previous_;
};

} // namespace liveupdate::supervisor::qemu
