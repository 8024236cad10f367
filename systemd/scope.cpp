#include "systemd/scope.hpp"

#include <systemd/sd-bus.h>
#include <systemd/sd-login.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>

#include "systemd/notify.hpp"

namespace liveupdate::systemd {
namespace {

constexpr const char* kDestination = "org.freedesktop.systemd1";
constexpr const char* kPath = "/org/freedesktop/systemd1";
constexpr const char* kInterface = "org.freedesktop.systemd1.Manager";

struct CloseBus {
    void operator()(sd_bus* bus) const { sd_bus_flush_close_unref(bus); }
};
struct FreeMessage {
    void operator()(sd_bus_message* message) const { sd_bus_message_unref(message); }
};
struct FreeSlot {
    void operator()(sd_bus_slot* slot) const { sd_bus_slot_unref(slot); }
};
using Bus = std::unique_ptr<sd_bus, CloseBus>;
using BusMessage = std::unique_ptr<sd_bus_message, FreeMessage>;
using Slot = std::unique_ptr<sd_bus_slot, FreeSlot>;

Error from_sd(int negative_errno, std::string_view what) {
    errno = -negative_errno;
    return Error::from_errno(what);
}

struct BusError {
    sd_bus_error error = SD_BUS_ERROR_NULL;
    ~BusError() { sd_bus_error_free(&error); }
    Error with(int negative_errno, const std::string& what) const {
        if (error.message == nullptr) return from_sd(negative_errno, what);
        return {ErrorCode::kSystem, what + ": " + error.message, -negative_errno};
    }
};

Result<Bus> open_bus(Manager manager) {
    sd_bus* bus = nullptr;
    const int r = manager == Manager::kUser ? sd_bus_open_user(&bus) : sd_bus_open_system(&bus);
    if (r < 0) return Error(ErrorCode::kNotFound, from_sd(r, "reach the service manager's D-Bus").message);
    return Bus(bus);
}

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
    int r = sd_bus_message_new_method_call(bus, &raw, kDestination, kPath, kInterface, "StartTransientUnit");
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

std::optional<OwnUnit> own_unit() {
    if (!has_manager()) return std::nullopt;
    char* name = nullptr;
    // The system's unit of a user's service is that of the user's manager.
    const bool of_user = sd_pid_get_user_unit(0, &name) >= 0;
    if (!of_user && sd_pid_get_unit(0, &name) < 0) return std::nullopt;
    OwnUnit unit{name, of_user ? Manager::kUser : Manager::kSystem};
    std::free(name);
    if (!unit.name.ends_with(".service")) return std::nullopt;
    return unit;
}

Result<void> move_to_scope(pid_t pid, const ScopeRequest& request, Deadline deadline) {
    TRY_ASSIGN(const Bus bus, open_bus(request.service.manager));
    JobEnd end{request.name, {}, {}};
    sd_bus_slot* raw_slot = nullptr;
    int r = sd_bus_match_signal(
        bus.get(), &raw_slot, kDestination, kPath, kInterface, "JobRemoved", &JobEnd::on_removed, &end);
    if (r < 0) return from_sd(r, "watch the service manager's jobs");
    const Slot slot(raw_slot);
    // Only who has subscribed is told of jobs.
    BusError error;
    r = sd_bus_call_method(
        bus.get(), kDestination, kPath, kInterface, "Subscribe", &error.error, nullptr, nullptr);
    if (r < 0) return error.with(r, "subscribe to the service manager");
    TRY_ASSIGN(const BusMessage message, scope_message(bus.get(), pid, request));
    sd_bus_message* raw_reply = nullptr;
    const auto left_us = static_cast<uint64_t>(std::max(deadline.poll_ms(), 1)) * 1000;
    r = sd_bus_call(bus.get(), message.get(), left_us, &error.error, &raw_reply);
    const BusMessage reply(raw_reply);
    if (r < 0) return error.with(r, "start " + request.name);
    const char* job = nullptr;
    if (r = sd_bus_message_read(reply.get(), "o", &job); r < 0) return from_sd(r, "read the job's name");
    while (end.job != job) {
        if (deadline.passed()) return Error(ErrorCode::kTimeout, request.name + " was not started in time");
        r = sd_bus_process(bus.get(), nullptr);
        if (r == 0) r = sd_bus_wait(bus.get(), static_cast<uint64_t>(std::max(deadline.poll_ms(), 1)) * 1000);
        if (r < 0) return from_sd(r, "wait for " + request.name);
    }
    if (end.result == "done") return {};
    return Error(ErrorCode::kRefused, "the job that starts " + request.name + " ended: " + end.result);
}

} // namespace liveupdate::systemd
