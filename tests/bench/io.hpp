// The parts of `./dev bench io`, each a comparison within one run that prints its own figures.
#pragma once

#include <cstdio>
#include <string>

#include "handoff/base/result.hpp"
#include "tests/bench/io_guests.hpp"

namespace liveupdate::tests {

// Throughput through our VMM and through QEMU, by turns in so many rounds: of drivers that cost the guest
// next to nothing, and of Linux.
Result<void> bench_disk_driver(unsigned rounds);
Result<void> bench_network_driver(unsigned rounds);
Result<void> bench_throughput(Load load, unsigned rounds, unsigned vcpus);

// Rates in the half second after an update against those before it.
Result<void> bench_driver_recovery(unsigned updates);
Result<void> bench_network_driver_recovery(unsigned updates);
Result<void> bench_recovery(Load load, unsigned updates, unsigned vcpus);

// Blackouts with 32 requests in flight on a disk of 200 ms, without I/O, and QEMU's downtime beside it.
Result<void> bench_slow_disk(unsigned updates);

} // namespace liveupdate::tests
