// What the rest of the supervisor knows of a guest's VMMs, whatever kind they are: how one is started, found
// again, asked to end, and replaced by another under the guest that runs.
#pragma once

#include <sys/types.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "handoff/channel.hpp"
#include "supervisor/config.hpp"
#include "supervisor/paths.hpp"
#include "supervisor/save_request.hpp"
#include "supervisor/shelter.hpp"
#include "supervisor/update_request.hpp"

namespace liveupdate::supervisor {

// What the guest did of its own accord.
struct GuestNews {
    enum class Kind { kReset, kEnded, kFailed };
    Kind kind{};
    bool powered_off = false; // kEnded
    unsigned status = 0;      // kEnded: 0 and 1 are good ends
    std::string detail{};     // kFailed: why
};

// The VMM that runs the guest.
struct RunningVmm {
    pid_t pid = 0; // 0: there is none
    RecordedBinary binary{};
    uint64_t started_unix = 0;
};

// What was found of a former supervisor's VMMs.
enum class Adoption {
    kNobody,  // the guest has not been started, as far as one can see
    kAdopted, // the VMM that runs it is ours now
    kEnded,   // it was started, and its VMM has ended since
};

struct UpdateHooks {
    int cancel_fd = -1; // readable: stop, if the guest has not been committed to the destination
    std::function<void(handoff::Phase, uint64_t elapsed_us)> on_phase; // on the update's thread
    Shelter shelter;
};

struct UpdateResult {
    UpdateRecord record;
    std::optional<OpenBinary> previous; // after a completed one: the binary that ran before
};

struct RamToCome {
    uint64_t bytes = 0;
    std::string trouble; // why nothing comes, in words; empty while it does
};

// Owned by the event loop's thread; while update() runs on another one, nothing else is called.
class GuestDriver {
public:
    GuestDriver() = default;
    GuestDriver(const GuestDriver&) = delete;
    GuestDriver& operator=(const GuestDriver&) = delete;
    virtual ~GuestDriver() = default; // ends the VMM, unless let_go() was called

    // Finds what a former supervisor has left; a VMM that has no guest ends. `kept` is what it had kept with
    // the service manager. An error: a VMM may run the guest and cannot be adopted now.
    virtual Result<Adoption> adopt(const handoff::NamedFds& kept) = 0;
    // Starts the guest. No VMM of it lives. On failure none does either.
    virtual Result<void> launch(const Shelter& shelter) = 0;

    // In place of launch(): the guest that was saved. On failure no VMM of it lives and the save is as it
    // was.
    virtual Result<RestoreReport> restore(const RestoreRequest& request, const Shelter& shelter) = 0;

    // What of a lazily restored guest's RAM has not come yet. Asks the VMM; empty when it does not answer.
    virtual std::optional<RamToCome> ram_to_come() = 0;
    // The path of the saved guest that RAM comes from page by page; empty when RAM is all the guest's own.
    virtual std::string ram_origin() const = 0;
    virtual RunningVmm running() const = 0;
    // Descriptors that become readable when there is news, or when the VMM has ended.
    virtual std::vector<int> watched() const = 0;
    // Takes what has come; false once the VMM is gone.
    virtual bool take_news(std::deque<GuestNews>& news) = 0;

    // Presses the power button. False when the guest does not hear it.
    virtual bool ask_to_end() = 0;
    // Ends the VMM in order; kills it at the deadline.
    virtual void end(Deadline deadline) = 0;
    // Ends the VMM, and lets go of all that belongs to the guest.
    virtual void kill() = 0;
    // The VMM runs on without us.
    virtual void let_go() = 0;
    // How the VMM ended: "was killed by signal 9". Empty when nobody can tell.
    virtual std::string how_it_ended() const = 0;

    // Borrowed: what a successor of this process needs beside what the VMM itself can tell it.
    virtual std::vector<handoff::FdToSend> keepsakes() const = 0;

    // From the spawn of the destination to the end of the source. Blocks, on a thread of its own. After it
    // running() tells who has the guest, if anybody has.
    virtual UpdateResult update(UpdateRequest request, std::string id, const UpdateHooks& hooks) = 0;
    // The same of a save. After an error, and unless it was to end, the guest runs on.
    virtual Result<SaveReport> save(SaveRequest request, const UpdateHooks& hooks) = 0;
};

// The driver that the VM's file asks for.
std::unique_ptr<GuestDriver> make_driver(const VmConfig& config, const Paths& paths);

} // namespace liveupdate::supervisor
