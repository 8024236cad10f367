// The supervisor's log: to stderr, or to the systemd journal with fields of its own when stderr is connected
// to it. systemd/liveupdate.catalog explains each kind of event to `journalctl -x`.
#pragma once

#include <string>

namespace liveupdate::supervisor {

// Their MESSAGE_IDs are part of the interface and are never changed.
enum class EventKind { kStarted, kCommitted, kRefused, kRolledBack, kRecovered, kFailed, kLost, kRebooted };

struct LogEvent {
    EventKind kind{};
    std::string vm;       // LIVEUPDATE_VM
    std::string update{}; // LIVEUPDATE_ID; empty outside of an update
    std::string phase{};  // LIVEUPDATE_PHASE: the last one that was reached
    std::string role{};   // LIVEUPDATE_ROLE: which VMM has the guest, source or destination
    std::string message;
};

// Once, in main(): chooses where spdlog's default logger and log_event() write.
void open_log();

void log_event(const LogEvent& event);

} // namespace liveupdate::supervisor
