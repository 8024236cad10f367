// The manifest: RAM blocks, where they lie in guest physical memory, and what machine it is. It comes from
// a peer and is believed only as far as it has been checked here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "handoff/base/result.hpp"
#include "handoff/channel.hpp"
#include "handoff/proto/session.pb.h"
#include "handoff/ram_block.hpp"

namespace liveupdate::handoff {

// The file that RAM's pages come from when they are first touched (Machine.ram_origin), among a guest's
// descriptors, and the capability of a VMM that knows what it is.
inline constexpr const char* kOriginFd = "origin";
inline constexpr const char* kOriginCapability = "ram-origin";
// A VMM that tells a guest when it is a copy (Machine.generation_id_gpa, Prepare.new_generation).
inline constexpr const char* kGenerationCapability = "generation-id";

// A guest physical range [gpa, gpa + size) that shows `block` from `offset` on. Page-aligned.
struct RamRegion {
    uint64_t gpa = 0;
    uint64_t size = 0;
    size_t block = 0; // index into Manifest::blocks
    uint64_t offset = 0;
    bool read_only = false;
};

inline constexpr size_t kMaxRamBlocks = 32;
inline constexpr size_t kMaxRamRegions = 64;
inline constexpr uint64_t kMaxGuestPhysical = uint64_t{1} << 46;

struct Manifest {
    std::vector<RamBlock> blocks;
    std::vector<RamRegion> regions; // ascending by gpa, not overlapping
    proto::Machine machine;
};

// Checks everything (counts, names, kinds, seals, sizes by fstat, alignment, overlaps, bounds) and takes the
// blocks' fds out of `fds`. On failure `fds` is left in an unspecified state and nothing is mapped.
Result<Manifest> take_manifest(const proto::Manifest& message, NamedFds& fds);

// kRefused: of a kind that this build does not know.
Result<RamKind> ram_kind_of(const proto::RamBlock& block);
proto::RamKind to_message(RamKind kind);

// The same manifest as a message, and the fds that must go with it.
proto::Manifest to_message(const Manifest& manifest);
std::vector<FdToSend> fds_of(const Manifest& manifest);

// An independent copy with duplicated fds.
Result<Manifest> duplicate(const Manifest& manifest);

} // namespace liveupdate::handoff
