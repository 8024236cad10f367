// Where things lie: sockets and logs, history, VM files.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <string_view>

#include "handoff/base/result.hpp"

namespace liveupdate::supervisor {

// A VM's name, which becomes part of paths: [a-z0-9][a-z0-9._-]{0,62}, else kInvalid in words.
Result<void> check_vm_name(std::string_view name);

// The folders; each is absolute, none need exist.
//   runtime_dir  $LIVEUPDATE_RUNTIME_DIR, else /run/liveupdate for root, else $XDG_RUNTIME_DIR/liveupdate
//   state_dir    $LIVEUPDATE_STATE_DIR, else /var/lib/liveupdate for root,
//                else $XDG_STATE_HOME/liveupdate, else ~/.local/state/liveupdate
//   config_dir   $LIVEUPDATE_CONFIG_DIR, else /etc/liveupdate/vms for root,
//                else $XDG_CONFIG_HOME/liveupdate/vms, else ~/.config/liveupdate/vms
// The functions take a name that check_vm_name() has accepted.
struct Paths {
    std::string runtime_dir;
    std::string state_dir;
    std::string config_dir;

    std::string vm_runtime_dir(std::string_view name) const;
    std::string control_socket(std::string_view name) const;
    std::string supervisor_pid(std::string_view name) const;
    std::string supervisor_log(std::string_view name) const;
    std::string vm_state_dir(std::string_view name) const;
    std::string history(std::string_view name) const;
    std::string config(std::string_view name) const;
    std::string host_policy() const; // liveupdate.toml, beside the folder of the VM files
    std::string rollout_slot(unsigned number) const;
    // Of all templates; no VM has a name that begins with a dot.
    std::string templates() const;
};

// The value of an environment variable, or nullptr.
using Environment = std::function<const char*(const char* variable)>;

// kInvalid when a variable is not an absolute path, or when a user other than root has neither ours nor
// XDG's.
Result<Paths> resolve_paths(uid_t uid, const Environment& environment);
// The same for this process.
Result<Paths> resolve_paths();

// Makes the folder and those above it (0755); one that is there is left as it is.
Result<void> make_directories(const std::string& path);

} // namespace liveupdate::supervisor
