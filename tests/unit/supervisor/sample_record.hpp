// A record with every field set.
#pragma once

#include "supervisor/record.hpp"

namespace liveupdate::supervisor {

inline UpdateRecord sample_record() {
    UpdateRecord r;
    r.id = "u-20261122-101530-4f2a";
    r.kind = UpdateKind::kUpdate;
    r.outcome = Outcome::kCompleted;
    r.started_unix_ms = 1795342530123;
    r.duration_us = 2'345'678;
    r.from = {"/usr/libexec/liveupdate/liveupdate-vmm", "1.0", "00112233445566778899aabbccddeeff00112233"};
    r.to = {"/usr/libexec/liveupdate/liveupdate-vmm", "1.1", "ffeeddccbbaa99887766554433221100ffeeddcc"};
    r.phases = {{"preparing", 0, 90'000, GuestOn::kSource},
        {"transferring", 90'100, 90'400, GuestOn::kNobody},
        {"probation", 90'500, 2'090'500, GuestOn::kDestination}};
    r.blackout_us = 410;
    r.rehearsal_pause_us = 300;
    r.predicted_blackout_us = 450;
    r.way = "x-ignore-shared";
    r.way_why = "the guest's RAM is shared memory, which both QEMUs map";
    r.vmm_downtime_us = 2'000;
    r.blackout_split = {{"pause", 60}, {"save", 150}, {"load", 200}};
    return r;
}

} // namespace liveupdate::supervisor
