// A guest's disk as the supervisor opens it: a file or a block device, with a lock that belongs to the guest.
//
// The lock is one of the open file description (F_OFD_SETLK), which every VMM of the guest is given by
// SCM_RIGHTS: it is held for as long as any of them, the supervisor, or a request in flight in the kernel has
// it open, whoever of them dies, and nobody has to pass it on.
#pragma once

#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"
#include "handoff/proto/session.pb.h"
#include "supervisor/config.hpp"

namespace liveupdate::supervisor {

struct DiskFile {
    UniqueFd file;
    handoff::proto::Disk disk; // what the guest will see
};

// kBusy when somebody else has the disk: anybody, or for a read-only disk anybody who may write to it.
Result<DiskFile> open_disk(const DiskConfig& config, const std::string& name);

} // namespace liveupdate::supervisor
