// Tells interrupts that will never be ended from those that a slow guest has not ended yet.
//
// Whoever counts a line's interrupts and their ends sees a difference that is sometimes a debt (the guest has
// had no CPU, and ends them when it gets one) and sometimes a mistake (they fell due while the line was
// masked, or two edges became one) that stays for ever. A debt shrinks or grows: the interrupt controller
// raises what is owed as soon as one is ended. A mistake stands still while the guest ends one interrupt
// after the other: the difference is it, or one more while an interrupt is in flight.
//
// Numbers only; whoever uses it looks about twice in each period.
#pragma once

#include <cstdint>

namespace liveupdate::vmm {

class UnendedFloor {
public:
    // How many looks must find the same difference, each with interrupts ended since the one before, until it
    // is taken for a mistake. Not how many interrupts: on a busy host many are ended between two looks, and
    // what the difference was meanwhile has been seen by nobody.
    static constexpr int64_t kSteady = 64;

    // `unended`: due or raised, and not ended; `ended`: ended so far. Returns how many will never be ended; 0
    // as long as that is not known.
    int64_t look(int64_t unended, int64_t ended);
    void forget() { least_ = 0; }

private:
    int64_t least_ = 0; // 0: nothing has been seen
    int64_t ended_at_last_ = 0;
    int64_t steady_ = 0;
};

} // namespace liveupdate::vmm
