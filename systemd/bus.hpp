// The service manager's D-Bus, for the files of this folder.
#pragma once

#include <systemd/sd-bus.h>

#include <memory>
#include <string>
#include <string_view>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"
#include "systemd/scope.hpp"

namespace liveupdate::systemd {

inline constexpr const char* kManagerName = "org.freedesktop.systemd1";
inline constexpr const char* kManagerPath = "/org/freedesktop/systemd1";
inline constexpr const char* kManagerInterface = "org.freedesktop.systemd1.Manager";

struct CloseBus {
    // Every call is waited for, so there is nothing to flush; a bus that hangs would be waited for.
    void operator()(sd_bus* bus) const { sd_bus_close_unref(bus); }
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

// sd-bus and sd-daemon return errors as negative numbers.
Error from_sd(int negative_errno, std::string_view what);

struct BusError {
    sd_bus_error error = SD_BUS_ERROR_NULL;
    BusError() = default;
    BusError(const BusError&) = delete;
    BusError& operator=(const BusError&) = delete;
    ~BusError() { sd_bus_error_free(&error); }
    // What the manager said, or else the number's words.
    Error with(int negative_errno, const std::string& what) const;
};

// Connected and ready; no later call waits for an answer beyond `deadline` as it is now. kNotFound when
// there is no bus, kTimeout when it does not get ready.
Result<Bus> open_bus(Manager manager, Deadline deadline);
// What is left until the deadline, at least a moment.
uint64_t left_us(Deadline deadline);

} // namespace liveupdate::systemd
