// What a guest sees of being a copy of another: 16 random bytes in its RAM that are others than before, and
// an interrupt that tells of it ("Virtual Machine Generation ID", Microsoft, 2018). Linux's driver vmgenid
// then seeds its random number generator anew.
//
// The bytes are RAM and a pending interrupt is the I/O APIC's, so both cross with these, and nothing is left
// to be saved.
#pragma once

#include <cstdint>

#include "handoff/base/result.hpp"
#include "handoff/proto/session.pb.h"
#include "vmm/boot/memory_map.hpp"
#include "vmm/boot/platform_tables.hpp"
#include "vmm/devices/interrupt_line.hpp"

namespace liveupdate::vmm {

// Fixed for ever, as kGenerationIdGpa. The pin is the second IDE channel's, which there is none of.
inline constexpr uint32_t kGenerationGsi = 15;

class GenerationId {
public:
    explicit GenerationId(InterruptLine& line) : line_(line) {}

    // Before the guest runs for the first time. Nothing for a guest that is to have none; kRefused when it is
    // to have it where this build has not.
    static Result<void> draw(const handoff::proto::Machine& machine, const GuestMemory& memory);
    // Before a guest that is a copy runs; it is told of it by announce().
    Result<void> renew(const handoff::proto::Machine& machine, const GuestMemory& memory);
    // Once the interrupt controllers are loaded. Does nothing unless there was a renewal. Any thread.
    void announce();

private:
    InterruptLine& line_;
    bool renewed_ = false;
};

} // namespace liveupdate::vmm
