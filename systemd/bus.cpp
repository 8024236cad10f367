#include "systemd/bus.hpp"

#include <algorithm>
#include <cerrno>

namespace liveupdate::systemd {

Error from_sd(int negative_errno, std::string_view what) {
    errno = -negative_errno;
    return Error::from_errno(what);
}

Error BusError::with(int negative_errno, const std::string& what) const {
    if (error.message == nullptr) return from_sd(negative_errno, what);
    return {ErrorCode::kSystem, what + ": " + error.message, -negative_errno};
}

uint64_t left_us(Deadline deadline) {
    return static_cast<uint64_t>(std::max(deadline.poll_ms(), 1)) * 1000;
}

Result<Bus> open_bus(Manager manager, Deadline deadline) {
    sd_bus* raw = nullptr;
    int r = manager == Manager::kUser ? sd_bus_open_user(&raw) : sd_bus_open_system(&raw);
    if (r < 0) return Error(ErrorCode::kNotFound, from_sd(r, "reach the service manager's D-Bus").message);
    Bus bus(raw);
    // By itself it waits for a bus that is silent for a minute and a half.
    while ((r = sd_bus_is_ready(raw)) == 0) {
        if (deadline.passed()) return Error(ErrorCode::kTimeout, "the service manager's D-Bus is silent");
        r = sd_bus_process(raw, nullptr);
        if (r == 0) r = sd_bus_wait(raw, left_us(deadline));
        if (r < 0) break;
    }
    if (r >= 0) r = sd_bus_set_method_call_timeout(raw, left_us(deadline));
    if (r < 0) return Error(ErrorCode::kNotFound, from_sd(r, "reach the service manager's D-Bus").message);
    return bus;
}

} // namespace liveupdate::systemd
