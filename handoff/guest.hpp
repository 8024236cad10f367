// The interfaces that a VMM implements to become updatable. The library calls them from one thread, the
// session thread; a VMM's own vCPU threads meet the library only in Outgoing and Incoming.
#pragma once

#include <poll.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "handoff/base/result.hpp"
#include "handoff/baton.hpp"
#include "handoff/channel.hpp"
#include "handoff/manifest.hpp"
#include "handoff/proto/session.pb.h"
#include "handoff/transfer.hpp"
#include "handoff/write_map.hpp"

namespace liveupdate::handoff {

// What a source says of its guest before an update.
struct GuestDescription {
    std::vector<SectionInfo> sections; // newest versions that this build saves
    std::string fixed_state;           // what does not change while the guest runs; the VMM's own format
    std::vector<FdToSend> fds;         // borrowed: open connections and the like, beyond those of the launch
};

// File descriptors of the process itself that the session loop watches beside its own.
class Pollable {
public:
    virtual ~Pollable() = default;
    virtual void collect(std::vector<pollfd>& fds) = 0;
    // The same entries, with revents set. Also called when nothing was ready and `poll_timeout` had passed.
    virtual void dispatch(const std::vector<pollfd>& fds) = 0;
    // When dispatch() wants to be called at the latest.
    virtual Deadline wake_at() const = 0;
};

// A guest that runs in this process, or has just been taken from it.
class SourceGuest : public Pollable {
public:
    // Phase negotiating; begins an update. From here until update_over() the guest opens no new connection.
    virtual Result<GuestDescription> describe() = 0;
    // Phases rehearsing, pausing and transferring: stops every vCPU, then puts every section of `out`, from
    // whichever threads. Returns once all are put, with the guest standing still; on failure too.
    virtual Result<void> save(Outgoing& out, Deadline deadline) = 0;
    // After save(): the guest goes on here, as if nothing had happened.
    virtual void resume() = 0;
    // The update is over for this guest, which runs here; so is the tracking of writes.
    virtual void update_over() = 0;
    // Phase preparing: from now on the guest's writes to its RAM are logged, its devices' too, and those
    // before a later save() are put into `map` by the time that returns. kUnsupported: this VMM cannot.
    virtual Result<void> begin_write_log(WriteMap map) = 0;
    // Puts what was written since the last time into the map, in place of what was there.
    virtual Result<void> collect_writes() = 0;
    // The guest runs elsewhere: give its VM up. Slow and quiet: the other process needs the machine.
    virtual void let_go() = 0;

    virtual proto::Status status() = 0;
    // Asks the guest to shut itself down, as a power button does, and returns at once. False when the guest
    // does not listen for that, and nothing has happened.
    virtual bool ask_to_end() = 0;
    // Everything that a new supervisor needs, as at the launch. Borrowed fds.
    virtual const Manifest& manifest() const = 0;
    virtual std::vector<FdToSend> adoption_fds() const = 0;
    // What the guest did that the supervisor must hear of, if anything; each event once.
    virtual std::optional<proto::GuestEvent> take_event() = 0;
};

struct PrepareOrder {
    Manifest manifest;
    NamedFds fds;
    Participant me = 0;
    std::vector<SectionInfo> sections; // agreed; the destination refuses unknown and missing ones
    std::string fixed_state;
    bool populate = true;
    bool rehearse = true;
    // The guest comes out of a file: the host's clocks when it was saved.
    std::optional<proto::HostClocks> saved_clocks;
    bool lazy_ram = false;                   // RAM comes from fd "save" while the guest runs, or:
    std::string save_uri;                    // from this NBD export
    std::optional<uint64_t> save_sum;        // of its first page, as whoever has read the state saw it
    std::chrono::milliseconds ram_timeout{}; // how long the guest may wait for the NBD server
    bool new_generation = false;             // it is a copy, and is told so
    Baton* baton = nullptr;                  // outlives the guest
};

// A guest that is about to come to this process.
class DestinationGuest {
public:
    virtual ~DestinationGuest() = default;
    // Phase preparing: everything that can be done while the source runs.
    virtual Result<proto::Prepared> prepare(PrepareOrder order) = 0;
    // Phase rehearsing: loads a trial state into something that is then thrown away.
    virtual Result<void> rehearse(Incoming& in) = 0;
    // Phase transferring: starts the loading, which waits for the sections, and returns at once. Whatever
    // goes wrong later is told by in->refuse().
    virtual Result<void> load(std::shared_ptr<Incoming> in) = 0;
    // Phase probation: the baton is ours, and vCPUs enter the guest meanwhile. Called at most a millisecond
    // after the commit, for what the thread that took the baton had no time for. The guest that runs.
    virtual std::unique_ptr<SourceGuest> run() = 0;
};

struct LaunchOrder {
    Manifest manifest;
    NamedFds fds;
    Participant me = 0;
    Baton* baton = nullptr; // held by `me`; outlives the guest
};

class Vmm {
public:
    virtual ~Vmm() = default;
    // What this build is and can do. `pid`, the protocol range and `participant` are filled in by the
    // library.
    virtual proto::Offer offer() const = 0;
    virtual Result<std::unique_ptr<SourceGuest>> launch(LaunchOrder order) = 0;
    virtual std::unique_ptr<DestinationGuest> destination() = 0;
};

} // namespace liveupdate::handoff
