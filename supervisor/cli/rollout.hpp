// The order in which several VMs are updated: so many at once, the canaries first, no new one after a
// failure.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "supervisor/exit_code.hpp"

namespace liveupdate::supervisor::cli {

enum class AfterFailure { kStop, kGoOn };

struct RolloutOptions {
    size_t most_at_once = 4; // at least 1
    size_t canaries = 0;     // so many first; the others wait until all of these have succeeded
    AfterFailure after_failure = AfterFailure::kStop; // canaries that fail stop the others in any case
};

// What the rollout needs to know of the world. Both are called from several threads at once.
struct RolloutHooks {
    std::function<ExitCode(size_t index)> update; // updates one VM, its probation included
    std::function<bool()> interrupted;            // no new VM is begun once it is true
};

// True for a code after which the next VM may be begun.
constexpr bool went_well(ExitCode code) {
    return code == ExitCode::kDone || code == ExitCode::kNothingToDo;
}

// Updates the VMs 0..count-1 and returns when all that were begun have ended: the code of each, nullopt for
// one that was not begun.
std::vector<std::optional<ExitCode>> run_rollout(
    size_t count, const RolloutOptions& options, const RolloutHooks& hooks);

} // namespace liveupdate::supervisor::cli
