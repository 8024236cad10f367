#include "supervisor/journal.hpp"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/sinks/systemd_sink.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <syslog.h>
#include <systemd/sd-journal.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <vector>

namespace liveupdate::supervisor {
namespace {

constexpr const char* kIdentifier = "liveupdated";

struct EventRow {
    EventKind kind;
    const char* message_id;
    int priority;
};
// In the order of the enumeration; the same ids as in systemd/liveupdate.catalog.
constexpr std::array kEvents = {
    EventRow{EventKind::kStarted, "2cb2aaa5fc8d4f04abeb1e14bb0a437a", LOG_INFO},
    EventRow{EventKind::kCommitted, "2eb7dc3f52a14330b59e02d4e2d8b7ec", LOG_NOTICE},
    EventRow{EventKind::kRefused, "2e3be13692dd40608a052c9d63be343b", LOG_WARNING},
    EventRow{EventKind::kRolledBack, "5d4cda53e04f48e0b1d86fee22d27f40", LOG_WARNING},
    EventRow{EventKind::kRecovered, "e941f4631b714744b527e2ef1aa1e878", LOG_NOTICE},
    EventRow{EventKind::kFailed, "4c80583d134540f29aeb0ef98afae0d7", LOG_ERR},
    EventRow{EventKind::kLost, "2308297fbd4543c4891bfe1ee5b2fa4f", LOG_CRIT},
    EventRow{EventKind::kRebooted, "2e1aa61de30d41d593635a89524de592", LOG_WARNING},
};

// systemd.exec(5), $JOURNAL_STREAM: the device and inode of the stream that the manager has connected.
bool stderr_is_journal() {
    const char* const stream = std::getenv("JOURNAL_STREAM");
    struct stat status {};
    if (stream == nullptr || ::fstat(STDERR_FILENO, &status) < 0) return false;
    return std::to_string(status.st_dev) + ":" + std::to_string(status.st_ino) == stream;
}

spdlog::level::level_enum level_of(int priority) {
    if (priority <= LOG_ERR) return spdlog::level::err;
    return priority == LOG_WARNING ? spdlog::level::warn : spdlog::level::info;
}

} // namespace

void open_log() {
    if (stderr_is_journal()) {
        spdlog::set_default_logger(spdlog::systemd_logger_mt(kIdentifier, kIdentifier));
        return;
    }
    spdlog::set_default_logger(spdlog::stderr_logger_mt(kIdentifier));
    spdlog::set_pattern("%Y-%m-%d %H:%M:%S.%e %l %v");
}

void log_event(const LogEvent& event) {
    const EventRow& row = kEvents[static_cast<size_t>(event.kind)];
    const std::string text = event.vm + ": " + event.message;
    if (!stderr_is_journal()) return spdlog::log(level_of(row.priority), "{}", text);
    std::vector<std::string> fields = {"MESSAGE=" + text, "PRIORITY=" + std::to_string(row.priority),
        std::string("MESSAGE_ID=") + row.message_id, std::string("SYSLOG_IDENTIFIER=") + kIdentifier,
        "LIVEUPDATE_VM=" + event.vm};
    if (!event.update.empty()) fields.push_back("LIVEUPDATE_ID=" + event.update);
    if (!event.phase.empty()) fields.push_back("LIVEUPDATE_PHASE=" + event.phase);
    if (!event.role.empty()) fields.push_back("LIVEUPDATE_ROLE=" + event.role);
    std::vector<iovec> parts;
    for (std::string& field : fields)
        parts.push_back({field.data(), field.size()});
    if (::sd_journal_sendv(parts.data(), static_cast<int>(parts.size())) < 0)
        spdlog::log(level_of(row.priority), "{}", text);
}

} // namespace liveupdate::supervisor
