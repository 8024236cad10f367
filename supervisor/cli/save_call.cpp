#include "supervisor/cli/save_call.hpp"

#include <nlohmann/json.hpp>
#include <utility>

#include "supervisor/cli/control_client.hpp"
#include "supervisor/cli/interrupt.hpp"
#include "supervisor/cli/json_view.hpp"
#include "supervisor/units.hpp"

namespace liveupdate::supervisor::cli {
namespace {

constexpr std::chrono::seconds kShortAnswer(10);

std::string mebibytes(uint64_t bytes) {
    return std::to_string((bytes + (1u << 19)) >> 20) + " MiB";
}

} // namespace

Result<nlohmann::json> call_save(
    CliIo& io, const std::string& name, const nlohmann::json& request, ExitCode& code) {
    auto client = ControlClient::connect(io.paths, name);
    if (!client) {
        code = complain(io, client.error());
        return client.error();
    }
    const InterruptGuard guard;
    bool abort_sent = false;
    const auto on_tick = [&] {
        if (InterruptGuard::count() > 0 && !std::exchange(abort_sent, true))
            if (auto second = ControlClient::connect(io.paths, name))
                static_cast<void>(second->call({{"command", "abort"}}, Deadline::after(kShortAnswer)));
        return InterruptGuard::count() > 1 ? ControlClient::Wait::kGiveUp : ControlClient::Wait::kGoOn;
    };
    auto report = client->call(request, Deadline::never(), {{}, on_tick});
    if (report) {
        if (text_at(*report, "/guest") == "stopped") wait_until_gone(io.paths, name);
        return report;
    }
    complain(io, report.error());
    code = report.error().code == ErrorCode::kSystem ? ExitCode::kFailed : exit_code(report.error());
    return report;
}

std::string save_summary(const nlohmann::json& report, const std::string& name) {
    const auto time = [&](const char* pointer) {
        return human_duration(std::chrono::microseconds(number_at(report, pointer)));
    };
    std::string text = name + ": saved to " + text_at(report, "/path") + ": " +
                       mebibytes(number_at(report, "/written_bytes")) + " written of " +
                       mebibytes(number_at(report, "/ram_bytes")) + " of RAM in " + time("/duration_us") +
                       "; ";
    if (text_at(report, "/guest") == "stopped") return text + "the guest has been stopped";
    return text + "the guest stood still for " + time("/stood_still_us") + " and runs on";
}

void print_notes(CliIo& io, const nlohmann::json& report) {
    for (const auto& note : report.value("notes", nlohmann::json::array()))
        if (note.is_string()) io.err << "note: " << printable(note.get<std::string>()) << '\n';
}

} // namespace liveupdate::supervisor::cli
