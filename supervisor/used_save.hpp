// A save in place that is being used up: once its guest runs, the RAM beside it is no longer what was saved.
#pragma once

#include <string>

#include "handoff/base/result.hpp"

namespace liveupdate::supervisor {

// Takes the name of the file at `path` away, on the disk, too, before the guest may change its RAM: what
// would be found after a loss of power must not be the state of one moment beside the RAM of another.
Result<void> use_up_save(const std::string& path);
// Of a guest that has not run, and will not.
void put_save_back(const std::string& path);
// Of a guest that runs.
void forget_used_save(const std::string& path);

// What it is called meanwhile.
std::string used_save(const std::string& path);

} // namespace liveupdate::supervisor
