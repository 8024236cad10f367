#include "supervisor/cli/record_view.hpp"

#include <chrono>
#include <ctime>

#include "supervisor/binary.hpp"
#include "supervisor/units.hpp"

namespace liveupdate::supervisor::cli {
namespace {

std::string span(uint64_t us) {
    return human_duration(std::chrono::microseconds(static_cast<int64_t>(us)));
}

std::string either(const std::string& text, const char* fallback) {
    return text.empty() ? fallback : printable(text);
}

std::string with_build(const RecordedBinary& b) {
    const std::string version = either(b.version, "unknown version");
    return b.build_id.empty() ? version : version + " (build " + printable(short_build_id(b.build_id)) + ")";
}

// Two builds of one version are told apart by their build-ids.
std::string change(const UpdateRecord& r) {
    if (r.from.version != r.to.version && !r.from.version.empty() && !r.to.version.empty())
        return printable(r.from.version) + " -> " + printable(r.to.version);
    return with_build(r.from) + " -> " + with_build(r.to);
}

std::string blackout(const UpdateRecord& r) {
    if (!r.blackout_us) return "";
    std::string more;
    if (r.predicted_blackout_us) more = "predicted " + span(*r.predicted_blackout_us);
    // In whole milliseconds, and of what the source does alone.
    if (r.vmm_downtime_us) {
        if (!more.empty()) more += ", ";
        more +=
            "QEMU's own figure " +
            (*r.vmm_downtime_us < 1000 ? "under 1 ms" : std::to_string(*r.vmm_downtime_us / 1000) + " ms");
    }
    return ", blackout " + span(*r.blackout_us) + (more.empty() ? "" : " (" + more + ")");
}

std::string forecast(const UpdateRecord& r) {
    std::string text;
    if (r.predicted_blackout_us) text += ", blackout predicted " + span(*r.predicted_blackout_us);
    if (r.rehearsal_pause_us) text += ", the rehearsal paused the guest for " + span(*r.rehearsal_pause_us);
    return text;
}

// "by postcopy (the guest's RAM is private...)"
std::string by(const UpdateRecord& r) {
    if (r.way.empty()) return "";
    return ", by " + printable(r.way) + " (" + either(r.way_why, "no reason was given") + ")";
}

std::string because(const UpdateRecord& r) {
    return ": " + either(r.reason, "no reason was given");
}

std::string outcome_of(const UpdateRecord& r) {
    const std::string runs_on = "; the guest runs on in " + with_build(r.from);
    switch (r.outcome) {
    case Outcome::kCompleted:
        return (r.kind == UpdateKind::kRollback ? "went back " : "updated ") + change(r) + blackout(r);
    case Outcome::kPlanned:
        return "would update " + change(r) + forecast(r) + by(r);
    case Outcome::kNothingToDo:
        return "nothing to do: " + either(r.reason, "the binary on disk runs already");
    case Outcome::kRefused:
        return "refused" + because(r) + "; the guest was not touched";
    case Outcome::kAbandoned:
        return "abandoned" + because(r) + runs_on;
    case Outcome::kRolledBack:
        return "rolled back" + because(r) + runs_on + blackout(r);
    case Outcome::kFailed:
        return "failed" + because(r);
    case Outcome::kLost:
        return "the guest is lost" + because(r);
    }
    return "";
}

} // namespace

std::string describe(const UpdateRecord& r) {
    std::string text = outcome_of(r);
    for (const std::string& note : r.notes)
        text += "; note: " + printable(note);
    return text;
}

Colour colour_of(ExitCode code) {
    if (code == ExitCode::kDone) return Colour::kGreen;
    if (code == ExitCode::kNothingToDo) return Colour::kDim;
    return code == ExitCode::kFailed || code == ExitCode::kLost || code == ExitCode::kInternal
               ? Colour::kRed
               : Colour::kYellow;
}

std::string local_time(int64_t unix_seconds) {
    const time_t seconds = unix_seconds;
    tm parts{};
    char text[64];
    if (!::localtime_r(&seconds, &parts) ||
        std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &parts) == 0)
        return "unknown time";
    return text;
}

std::string ago(int64_t unix_seconds, int64_t now) {
    constexpr int64_t kCentury = int64_t{100} * 366 * 86400;
    if (unix_seconds >= now) return "just now";
    if (unix_seconds < now - kCentury) return "long ago";
    const int64_t seconds = now - unix_seconds;
    return (seconds < 60 ? std::to_string(seconds) + "s" : human_duration(std::chrono::seconds(seconds))) +
           " ago";
}

} // namespace liveupdate::supervisor::cli
