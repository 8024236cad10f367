// The parts of `./dev bench io`, each a comparison within one run that prints its own figures.
#pragma once

#include <cstdio>
#include <string>

#include "handoff/base/result.hpp"

namespace liveupdate::tests {

// Blackouts with 32 requests in flight on a disk of 200 ms, without I/O, and QEMU's downtime beside it.
Result<void> bench_slow_disk(unsigned updates);

} // namespace liveupdate::tests
