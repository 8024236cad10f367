// What a supervisor does that finds two QEMUs in the middle of an update by postcopy: with the other ways one
// of them is not needed, and may end.
#pragma once

#include "handoff/baton.hpp"
#include "supervisor/qemu/qemu_process.hpp"

namespace liveupdate::supervisor::qemu {

enum class PostcopyOwner {
    kOwner,  // the one that the word names has the guest; the other is not needed
    kOther,  // the guest has gone on to the other, and so has the word; the one that had it is not needed
    kNobody, // pages are lost with a QEMU that has died
};

// Goes on with a postcopy between the two, if one is under way, until one of them has all of the guest; the
// word is moved and the guest made to run as the update would have done it. `other` is null when only the
// owner is left. kTimeout: pages are still crossing, and both must live.
Result<PostcopyOwner> settle_postcopy(
    QemuProcess& owner, QemuProcess* other, handoff::Baton& baton, Deadline deadline);

} // namespace liveupdate::supervisor::qemu
