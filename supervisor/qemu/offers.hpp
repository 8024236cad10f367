// What a QEMU tells of itself and its guest, for the choice of a way.
#pragma once

#include "supervisor/qemu/qemu_process.hpp"
#include "supervisor/qemu/ways.hpp"

namespace liveupdate::supervisor::qemu {

// The schema is large, and a QEMU that runs a guest holds it up for a moment while it writes it: asked for
// only when the mode cpr-transfer is in question.
enum class Modes { kAsk, kPassOver };

Result<Offer> offer_of(QemuProcess& qemu, Modes modes, Deadline deadline, int cancel_fd);
Result<GuestFacts> facts_of(QemuProcess& qemu, Deadline deadline, int cancel_fd);

} // namespace liveupdate::supervisor::qemu
