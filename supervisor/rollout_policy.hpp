// What is done with VMs whose VMM has been replaced on disk: the [rollout] table of liveupdate.toml, for all
// VMs of a host.
#pragma once

#include <string>
#include <string_view>

#include "handoff/base/result.hpp"

namespace liveupdate::supervisor {

enum class RolloutMode { kAutomatic, kFlag, kWindow };

struct RolloutPolicy {
    RolloutMode mode = RolloutMode::kAutomatic;
    std::string window;    // OnCalendar= of systemd.timer(5); set with kWindow only
    unsigned canary = 1;   // so many first
    unsigned parallel = 4; // so many at once; 1..256
};

// Pure; errors as parse_vm_config(). An empty file is the defaults.
Result<RolloutPolicy> parse_rollout_policy(std::string_view toml, const std::string& path);

// Beside the folder of the VM files. A file that is not there is the defaults.
Result<RolloutPolicy> load_rollout_policy(const std::string& path);

} // namespace liveupdate::supervisor
