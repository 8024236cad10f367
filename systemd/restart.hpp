// Whether a stop of this service is the first half of a restart.
#pragma once

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"
#include "systemd/scope.hpp"

namespace liveupdate::systemd {

// True while the manager stops the service in order to start it again. Errors of D-Bus.
Result<bool> is_being_restarted(const ServiceUnit& service, Deadline deadline);

} // namespace liveupdate::systemd
