#include "systemd/restart.hpp"

#include <cstdlib>

#include "systemd/bus.hpp"

namespace liveupdate::systemd {
namespace {

using BusText = std::unique_ptr<char, decltype(&std::free)>;

} // namespace

Result<bool> is_being_restarted(const ServiceUnit& service, Deadline deadline) {
    TRY_ASSIGN(const Bus bus, open_bus(service.manager, deadline));
    char* raw_path = nullptr;
    int r = sd_bus_path_encode("/org/freedesktop/systemd1/unit", service.name.c_str(), &raw_path);
    if (r < 0) return from_sd(r, "name " + service.name + " on D-Bus");
    const BusText path(raw_path, &std::free);
    BusError error;
    sd_bus_message* raw_job = nullptr;
    r = sd_bus_get_property(bus.get(), kManagerName, path.get(), "org.freedesktop.systemd1.Unit", "Job",
        &error.error, &raw_job, "(uo)");
    const BusMessage job(raw_job);
    if (r < 0) return error.with(r, "ask for the job of " + service.name);
    uint32_t id = 0;
    const char* job_path = nullptr;
    if (r = sd_bus_message_read(job.get(), "(uo)", &id, &job_path); r < 0)
        return from_sd(r, "read the job of " + service.name);
    if (id == 0) return false; // no job: the signal was sent by somebody else
    char* raw_type = nullptr;
    r = sd_bus_get_property_string(bus.get(), kManagerName, job_path, "org.freedesktop.systemd1.Job",
        "JobType", &error.error, &raw_type);
    if (r < 0) return error.with(r, "ask for the type of the job of " + service.name);
    const BusText type(raw_type, &std::free);
    return std::string_view(type.get()).ends_with("restart"); // also "try-restart"
}

} // namespace liveupdate::systemd
