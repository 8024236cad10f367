#pragma once
/// What a guest provides to the runtime.
#include "tests/guests/report.hpp"

namespace tests::guests {

extern const GuestKind kGuestKind;

/// Runs once on vCPU 0, before the other vCPUs start and before `magic` is set.
void set_up();

/// Runs on every vCPU, in ring 3 with interrupts on, and does not return.
[[noreturn]] void run(VcpuSlot& slot);

} // namespace tests::guests
