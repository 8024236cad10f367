// What the tests of QEMU guests have in common.
#pragma once

#include "tests/integration/checks.hpp"
#include "tests/support/other_qemu.hpp"

namespace liveupdate::tests {

// Why no QEMU guest can run here; empty when one can.
std::string why_no_qemu_guest();

#define NEEDS_QEMU()                                                                                         \
    if (const std::string why = why_no_qemu_guest(); !why.empty()) {                                         \
        std::printf("SKIPPED: %s\n", why.c_str());                                                           \
        return;                                                                                              \
    }

// A QEMU of 10.0 or later that runs on this host; tests/support/get_newer_qemu makes one. Empty: there is
// none.
std::string newer_qemu();

#define NEEDS_NEWER_QEMU()                                                                                   \
    NEEDS_QEMU();                                                                                            \
    if (newer_qemu().empty()) {                                                                              \
        std::printf("SKIPPED: LIVEUPDATE_TEST_NEWER_QEMU names no newer QEMU\n");                            \
        return;                                                                                              \
    }

// A guest that watches its own clock and RAM, in QEMU's q35; under KVM or, where there is none or
// LIVEUPDATE_TEST_ACCEL=tcg says so, under TCG.
LiveVmOptions qemu_guest();

// What check_sound() asks, and that nothing is left of other QEMUs.
void check_runs(LiveVm& vm);

} // namespace liveupdate::tests
