// Which VMs there are, by the folders of paths.hpp.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "supervisor/cli/io.hpp"

namespace liveupdate::supervisor::cli {

// Names with a file in the config folder or a socket in the runtime folder, sorted.
std::vector<std::string> known_vms(const Paths& paths);
// Those with a control socket, whether or not somebody answers at it.
std::vector<std::string> vms_with_socket(const Paths& paths);

// The names in the order given, each once; kInvalid at the first that is no VM name.
Result<std::vector<std::string>> checked_names(const std::vector<std::string>& names);

// The supervisor's answer to "status". A VM that is known but not run by a supervisor answers
// {"name", "state": "stopped" or "unreachable", "config", "on_disk", "message"} in its place.
Result<nlohmann::json> vm_status(const Paths& paths, const std::string& name);

} // namespace liveupdate::supervisor::cli
