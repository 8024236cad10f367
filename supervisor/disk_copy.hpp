// A copy of a disk, which is a file: sharing its blocks where the file system can (reflinks of btrfs, XFS and
// others), else block by block, without what is a hole.
#pragma once

#include <cstdint>
#include <string>

#include "handoff/base/result.hpp"

namespace liveupdate::supervisor {

enum class CopyWay {
    kReflink, // or not at all
    kAny,
};

struct DiskCopy {
    bool shares = false; // its blocks with the original
    uint64_t bytes = 0;  // that were written otherwise
};

// `from` is borrowed; `to` must not be there, and is removed again on failure. kUnsupported: the file system,
// or the two of them, cannot share blocks; kInvalid: this is no file; kAborted: `cancel_fd` became readable.
// Synced.
Result<DiskCopy> copy_disk(int from, const std::string& to, CopyWay way, int cancel_fd = -1);

} // namespace liveupdate::supervisor
