// The ELF build-id of the running program, as lower-case hex; empty when it was linked without one.
#pragma once

#include <string>

namespace liveupdate::handoff {

std::string own_build_id();

} // namespace liveupdate::handoff
