#include "supervisor/save_request.hpp"

#include <nlohmann/json.hpp>
#include <utility>

#include "handoff/save/layout.hpp"
#include "handoff/save/nbd_uri.hpp"

namespace liveupdate::supervisor {

std::string_view to_string(SaveKind kind) {
    return kind == SaveKind::kInPlace ? "in-place" : "file";
}

std::optional<SaveKind> parse_save_kind(std::string_view word) {
    for (const SaveKind kind : {SaveKind::kFile, SaveKind::kInPlace})
        if (to_string(kind) == word) return kind;
    return std::nullopt;
}

std::optional<SaveStep> parse_save_step(std::string_view word) {
    constexpr std::pair<std::string_view, SaveStep> kSteps[] = {{"described", SaveStep::kDescribed},
        {"stopped", SaveStep::kStopped}, {"written", SaveStep::kWritten}, {"finished", SaveStep::kFinished},
        {"taken", SaveStep::kTaken}};
    for (const auto& [name, step] : kSteps)
        if (name == word) return step;
    return std::nullopt;
}

Result<void> check(const RestoreRequest& request) {
    if (request.ram == RestoreRam::kLazy && request.identity == Identity::kNew)
        return Error(ErrorCode::kInvalid, "a copy is told so in its RAM before it runs, and with --lazy that "
                                          "is not there yet; restore with "
                                          "--clone and --mapped, or without --lazy");
    if (!handoff::save::is_nbd_uri(request.from)) return {};
    TRY(handoff::save::check_nbd_uri(request.from));
    if (request.ram == RestoreRam::kMapped)
        return Error(ErrorCode::kInvalid,
            "RAM cannot be mapped from an NBD server, which the guest would need for as long as it runs; "
            "restore with --lazy, or copy the save to this host (`nbdcopy`) and restore that with --mapped");
    if (request.ram_timeout.count() <= 0 || request.ram_timeout > kLongestRamTimeout)
        return Error(
            ErrorCode::kInvalid, "--ram-timeout is more than nothing and at most 7 days, for example 5m");
    return {};
}

std::string save_at(const std::string& from) {
    return handoff::save::is_nbd_uri(from) ? from : from + "/" + std::string(handoff::save::kFileName);
}

nlohmann::json to_json(const SaveReport& report) {
    return {{"path", report.path}, {"ram_bytes", report.ram_bytes}, {"written_bytes", report.written_bytes},
        {"passes", report.passes}, {"stood_still_us", report.stood_still_us}, {"sync_us", report.sync_us},
        {"duration_us", report.duration_us},
        {"guest", report.after == AfterSave::kStop ? "stopped" : "running"}, {"notes", report.notes}};
}

nlohmann::json to_json(const RestoreReport& report) {
    return {{"ram_us", report.ram_us}, {"start_us", report.start_us}, {"prepare_us", report.prepare_us},
        {"hand_over_us", report.hand_over_us}, {"entered_ns", report.entered_ns}, {"notes", report.notes}};
}

} // namespace liveupdate::supervisor
