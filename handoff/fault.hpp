// Faults on purpose: the phase table's hook for tests. A fault is armed per update by the supervisor, which
// accepts one only when it was itself started for tests; without one, reached() is a comparison.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "handoff/base/result.hpp"
#include "handoff/phase.hpp"
#include "handoff/proto/session.pb.h"

namespace liveupdate::handoff {

enum class FaultAction { kKill, kFail };

class FaultPoint {
public:
    FaultPoint() = default;
    FaultPoint(Phase phase, FaultAction action, pid_t victim);
    static FaultPoint from(const proto::Fault& message);
    proto::Fault to_message() const;

    // Called by whoever reaches `phase`. Kills the victim with SIGKILL (it may be the caller), or returns the
    // error to fail with. Only the first call for the armed phase acts.
    Result<void> reached(Phase phase);

private:
    std::optional<Phase> phase_;
    FaultAction action_ = FaultAction::kKill;
    pid_t victim_ = 0;
};

} // namespace liveupdate::handoff
