// What every integration test asks of a VM.
#pragma once

#include <doctest/doctest.h>

#include <cstdio>
#include <memory>
#include <string>

#include "tests/support/live_vm.hpp"

namespace liveupdate::tests {

// First line of a test that runs a guest.
#define NEEDS_KVM()                                                                                          \
    if (const std::string why = why_no_kvm(); !why.empty()) {                                                \
        std::printf("SKIPPED: %s\n", why.c_str());                                                           \
        return;                                                                                              \
    }

// A number from the environment.
unsigned number_from(const char* variable, unsigned otherwise);

// A VM whose guest runs on all its vCPUs; ends the test otherwise.
std::unique_ptr<LiveVm> started(LiveVmOptions options);

// The guest's first error in words.
std::string first_error_of(const LiveVm& vm);

// The binary of the n-th update of a VM that was started with liveupdate-vmm: the two builds take turns.
std::string turn(unsigned n);

// Updates that must complete, from the n-th turn on.
void update_in_turn(LiveVm& vm, unsigned first, unsigned count);

// The guest has seen no error, no two processes ran it at once, and its owner is the VMM that status names.
void check_sound(LiveVm& vm, unsigned vcpus);
// The same without an owner.
void check_never_two_owners(const LiveVm& vm, unsigned vcpus);

// For check_nothing_leaked(): what is held once connections and processes that are on their way out have
// gone.
Holdings holdings_at_rest(LiveVm& vm);
// Nothing more, nothing less is held than before. Waits for what ends in its own time, such as connections.
void check_nothing_leaked(LiveVm& vm, const Holdings& before);

} // namespace liveupdate::tests
