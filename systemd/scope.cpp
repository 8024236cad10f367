#include "systemd/scope.hpp"

#include <systemd/sd-login.h>

#include <cstdlib>

#include "systemd/bus.hpp"
#include "systemd/notify.hpp"

namespace liveupdate::systemd {
namespace {

// How the job of a unit ended, once it has.
struct JobEnd {
    std::string unit;
    std::string job; // its path, once it has ended
    std::string result;

    static int on_removed(sd_bus_message* message, void* self, sd_bus_error*) {
        uint32_t id = 0;
        const char *job = nullptr, *unit = nullptr, *result = nullptr;
        if (sd_bus_message_read(message, "uoss", &id, &job, &unit, &result) < 0) return 0;
        auto* end = static_cast<JobEnd*>(self);
        if (unit != end->unit) return 0;
        end->job = job;
        end->result = result;
        return 0;
    }
};

Result<BusMessage> scope_message(sd_bus* bus, pid_t pid, const ScopeRequest& request) {
    sd_bus_message* raw = nullptr;
    int r = sd_bus_message_new_method_call(
        bus, &raw, kManagerName, kManagerPath, kManagerInterface, "StartTransientUnit");
    if (r < 0) return from_sd(r, "make a D-Bus message");
    BusMessage message(raw);
    r = sd_bus_message_append(raw, "ss", request.name.c_str(), "fail");
    if (r >= 0) r = sd_bus_message_open_container(raw, 'a', "(sv)");
    if (r >= 0) r = sd_bus_message_append(raw, "(sv)", "Description", "s", request.description.c_str());
    if (r >= 0) r = sd_bus_message_append(raw, "(sv)", "PIDs", "au", 1, static_cast<uint32_t>(pid));
    if (r >= 0) r = sd_bus_message_append(raw, "(sv)", "CollectMode", "s", "inactive-or-failed");
    if (r >= 0) r = sd_bus_message_append(raw, "(sv)", "Before", "as", 1, request.service.name.c_str());
    if (r >= 0 && !request.slice.empty())
        r = sd_bus_message_append(raw, "(sv)", "Slice", "s", request.slice.c_str());
    if (r >= 0) r = sd_bus_message_close_container(raw);
    if (r >= 0) r = sd_bus_message_append(raw, "a(sa(sv))", 0);
    if (r < 0) return from_sd(r, "fill a D-Bus message");
    return message;
}

} // namespace

std::optional<ServiceUnit> service_of(pid_t pid) {
    char* name = nullptr;
    // The system's unit of a user's service is that of the user's manager.
    const bool of_user = sd_pid_get_user_unit(pid, &name) >= 0;
    if (!of_user && sd_pid_get_unit(pid, &name) < 0) return std::nullopt;
    ServiceUnit unit{name, of_user ? Manager::kUser : Manager::kSystem};
    std::free(name);
    if (!unit.name.ends_with(".service")) return std::nullopt;
    return unit;
}

std::optional<ServiceUnit> own_unit() {
    return has_manager() ? service_of(0) : std::nullopt;
}

Result<void> move_to_scope(pid_t pid, const ScopeRequest& request, Deadline deadline) {
    TRY_ASSIGN(const Bus bus, open_bus(request.service.manager, deadline));
    JobEnd end{request.name, {}, {}};
    sd_bus_slot* raw_slot = nullptr;
    int r = sd_bus_match_signal(bus.get(), &raw_slot, kManagerName, kManagerPath, kManagerInterface,
        "JobRemoved", &JobEnd::on_removed, &end);
    if (r < 0) return from_sd(r, "watch the service manager's jobs");
    const Slot slot(raw_slot);
    // Only who has subscribed is told of jobs.
    BusError error;
    r = sd_bus_call_method(bus.get(), kManagerName, kManagerPath, kManagerInterface, "Subscribe",
        &error.error, nullptr, nullptr);
    if (r < 0) return error.with(r, "subscribe to the service manager");
    TRY_ASSIGN(const BusMessage message, scope_message(bus.get(), pid, request));
    sd_bus_message* raw_reply = nullptr;
    r = sd_bus_call(bus.get(), message.get(), left_us(deadline), &error.error, &raw_reply);
    const BusMessage reply(raw_reply);
    if (r < 0) return error.with(r, "start " + request.name);
    const char* job = nullptr;
    if (r = sd_bus_message_read(reply.get(), "o", &job); r < 0) return from_sd(r, "read the job's name");
    while (end.job != job) {
        if (deadline.passed()) return Error(ErrorCode::kTimeout, request.name + " was not started in time");
        r = sd_bus_process(bus.get(), nullptr);
        if (r == 0) r = sd_bus_wait(bus.get(), left_us(deadline));
        if (r < 0) return from_sd(r, "wait for " + request.name);
    }
    if (end.result == "done") return {};
    return Error(ErrorCode::kRefused, "the job that starts " + request.name + " ended: " + end.result);
}

} // namespace liveupdate::systemd
