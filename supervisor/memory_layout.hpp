// Where RAM blocks lie in guest physical memory: a pure function, the same in every build for ever, because
// a guest keeps its layout across updates.
//
//     0 ........ 3 GiB   RAM, in the order of the blocks
//     3 GiB .... 4 GiB   the PCI hole: interrupt controllers, the witness page, firmware at its end
//     4 GiB .......      the rest of RAM
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "handoff/base/result.hpp"
#include "handoff/manifest.hpp"

namespace liveupdate::supervisor {

constexpr uint64_t kPciHoleStart = uint64_t{3} << 30;
constexpr uint64_t kPciHoleEnd = uint64_t{4} << 30;
constexpr uint64_t kWitnessGpa = 0xfe000000;
constexpr uint64_t kGenerationIdGpa = 0xef000; // below 1 MiB, where no kernel has RAM
constexpr uint64_t kFirmwareMaxSize = uint64_t{16} << 20;

// Regions for RAM blocks of these sizes (bytes, whole pages), ascending; a block across the hole's start
// becomes two regions. Region.block is the index in `block_sizes`.
Result<std::vector<handoff::RamRegion>> lay_out_memory(std::span<const uint64_t> block_sizes);

} // namespace liveupdate::supervisor
