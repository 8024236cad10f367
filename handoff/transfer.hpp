// The two ends of a state transfer: the area and the baton together, as a VMM's threads use them.
//
// The thread that puts the last section offers the baton, the thread that loads the last one takes it: no
// thread, message or process stands between the state and the commit.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"
#include "handoff/baton.hpp"
#include "handoff/fault.hpp"
#include "handoff/transfer_area.hpp"

namespace liveupdate::handoff {

// The source's end. Thread-safe; borrowed objects outlive it.
class Outgoing {
public:
    Outgoing(TransferArea& area, Baton& baton, Participant me, Participant heir, TransferRun run,
        FaultPoint& fault);

    // The index of a section that was negotiated, and the version to save it in.
    Result<size_t> find(std::string_view kind, uint32_t instance) const;
    uint32_t version(size_t index) const { return area_.sections()[index].version; }

    // Publishes one section; each exactly once. The caller guarantees that its part of the guest stands still
    // for good: after the last put of a real run the baton is offered before this returns.
    Result<void> put(size_t index, std::string_view bytes);
    void stamp_stopped(); // a vCPU has left KVM_RUN

private:
    TransferArea& area_;
    Baton& baton_;
    Participant me_;
    Participant heir_;
    TransferRun run_;
    FaultPoint& fault_;
    std::atomic<size_t> put_{0};
};

// The destination's end. Thread-safe. Threads that enter the guest hold it until they have; the baton
// outlives it.
class Incoming {
public:
    Incoming(std::shared_ptr<TransferArea> area, Baton& baton, Participant me, TransferRun run,
        Deadline deadline, FaultPoint fault);

    Result<size_t> find(std::string_view kind, uint32_t instance) const;
    uint32_t version(size_t index) const { return area_->sections()[index].version; }
    size_t count() const { return area_->sections().size(); }
    TransferRun run() const { return run_; }

    // Waits for a section's bytes and copies them out.
    Result<std::string> await(size_t index) const { return area_->await(index, run_, deadline_); }

    // The section has been loaded. In a real run the call for the last section takes the baton: true is
    // returned to exactly one thread of one process, which from then on owns the guest. `before_running` of
    // that thread's caller may do what must happen once and only by the owner.
    Result<bool> loaded(size_t index);

    // For the other threads: waits until this process owns the guest (true) or never will (false). Once false
    // has been returned, loaded() takes the baton no more.
    bool await_ownership() const;
    // The same for the session's thread, which is in no hurry: nobody spends time in the blackout on waking
    // it.
    bool watch_ownership() const;
    // Waits until all vCPUs have been stamped as entered.
    bool await_entered(Deadline deadline) const;

    // Says why the state cannot be used; the source takes the guest back at once. First reason wins.
    void refuse(const Error& why);
    void stamp_entered(size_t vcpus); // a vCPU is about to enter KVM_RUN; `vcpus` are expected in all

private:
    // Whether a thread of this process may still take the baton: a futex word.
    enum Door : uint32_t { kOpen, kTaking, kTaken, kShut };
    bool settled(uint32_t seen) const;
    void await_offer() const;

    Result<bool> take();

    std::shared_ptr<TransferArea> area_;
    Baton& baton_;
    Participant me_;
    TransferRun run_;
    Deadline deadline_;
    FaultPoint fault_;
    uint32_t epoch_; // of the baton when this end was made: a higher one means somebody else went on
    std::atomic<size_t> loaded_{0};
    std::atomic<size_t> entered_{0};
    mutable std::atomic<uint32_t> door_{kOpen};
    mutable std::atomic<uint32_t> sleepers_{0};
};

} // namespace liveupdate::handoff
