#include "supervisor/cli/status_view.hpp"

#include <chrono>
#include <nlohmann/json.hpp>

#include "supervisor/binary.hpp"
#include "supervisor/cli/json_view.hpp"
#include "supervisor/cli/record_view.hpp"
#include "supervisor/cli/start_command.hpp"
#include "supervisor/record.hpp"
#include "supervisor/units.hpp"

namespace liveupdate::supervisor::cli {
namespace {

bool runs(const std::string& state) {
    return state == "running" || state == "updating";
}

Colour state_colour(const std::string& state) {
    if (runs(state)) return Colour::kGreen;
    return state == "lost" || state == "unreachable" ? Colour::kRed : Colour::kYellow;
}

std::string build(const nlohmann::json& status, const char* pointer) {
    const std::string build_id = text_at(status, pointer);
    return build_id.empty() ? "unknown build" : "build " + short_build_id(build_id);
}

void line(CliIo& io, std::string title, const std::string& text) {
    if (text.empty()) return;
    title.insert(0, title.size() < 12 ? 12 - title.size() : 0, ' ');
    io.out << io.paint(Colour::kDim, title + ":") << ' ' << text << '\n';
}

std::string running_text(const nlohmann::json& status, int64_t now) {
    if (!find(status, "/vmm")) return "";
    std::string text =
        text_at(status, "/vmm/version", "unknown version") + " (" + build(status, "/vmm/build_id") + ")";
    if (const auto started = static_cast<int64_t>(number_at(status, "/vmm/started_unix")); started > 0)
        text += ", since " + local_time(started) + ", " + ago(started, now);
    if (const uint64_t pid = number_at(status, "/vmm/pid")) text += ", pid " + std::to_string(pid);
    return text;
}

std::string on_disk_text(const CliIo& io, const nlohmann::json& status) {
    if (const std::string error = text_at(status, "/on_disk/error"); !error.empty())
        return io.paint(Colour::kRed, error);
    if (!find(status, "/on_disk/binary")) return "";
    std::string text = text_at(status, "/on_disk/binary") + " (" + build(status, "/on_disk/build_id") + ")";
    if (true_at(status, "/outdated")) return text + ", " + io.paint(Colour::kYellow, "what runs is outdated");
    return find(status, "/vmm") ? text + ", up to date" : text;
}

std::string previous_text(const nlohmann::json& status) {
    if (!find(status, "/previous")) return "";
    return text_at(status, "/previous/version", "unknown version") + " (" +
           build(status, "/previous/build_id") + "), " + text_at(status, "/previous/binary");
}

std::string machine_text(const nlohmann::json& status) {
    const uint64_t vcpus = number_at(status, "/vcpus");
    if (vcpus == 0) return "";
    return std::to_string(vcpus) + (vcpus == 1 ? " vCPU, " : " vCPUs, ") +
           human_size(number_at(status, "/memory_bytes"));
}

std::string last_update_text(const nlohmann::json& status, int64_t now) {
    const auto* const last = find(status, "/last_update");
    if (!last) return find(status, "/vmm") ? "none" : "";
    const auto record = record_from_json(*last);
    if (!record) return "unreadable";
    return ago(static_cast<int64_t>(record->started_unix_ms / 1000), now) + ": " + describe(*record);
}

std::string ram_to_come_text(const CliIo& io, const nlohmann::json& status) {
    const uint64_t bytes = number_at(status, "/ram_to_come/bytes");
    if (bytes == 0) return "";
    const std::string trouble = text_at(status, "/ram_to_come/trouble");
    return human_size(bytes) + " of its RAM have yet to come from its save" +
           (trouble.empty() ? "" : "; " + io.paint(Colour::kRed, trouble));
}

std::string console_text(const nlohmann::json& status) {
    const std::string type = text_at(status, "/console/type");
    const std::string path = text_at(status, "/console/path");
    return path.empty() ? type : type + " " + path;
}

std::string last_update_word(const nlohmann::json& status) {
    const auto* const last = find(status, "/last_update");
    const auto record = last ? record_from_json(*last) : Error(ErrorCode::kNotFound, "");
    if (!record) return "-";
    const std::string outcome(to_string(record->outcome));
    if (!record->blackout_us) return outcome;
    return outcome + ", " +
           human_duration(std::chrono::microseconds(static_cast<int64_t>(*record->blackout_us)));
}

} // namespace

std::string next_step(const nlohmann::json& status, const Paths& paths) {
    const std::string name = text_at(status, "/name");
    const std::string state = text_at(status, "/state");
    const auto run = [&](const char* command) {
        return "run `liveupdate " + std::string(command) + " " + name + "`";
    };
    const auto start = [&] { return "`" + start_command(paths, name) + "`"; };
    if (state == "stopped" || state == "unreachable") return "run " + start();
    if (state == "lost")
        return run("history") + " for the reason, `liveupdate stop " + name + "`, then " + start();
    if (state == "updating") return "wait, or " + run("abort");
    if (!text_at(status, "/on_disk/error").empty())
        return "install a VMM that can be started, then " + run("plan");
    if (true_at(status, "/outdated")) return run("now");
    return "";
}

ExitCode code_of_state(const nlohmann::json& status) {
    const std::string state = text_at(status, "/state");
    if (runs(state)) return ExitCode::kDone;
    return state == "lost" ? ExitCode::kLost : ExitCode::kUnreachable;
}

void print_status(CliIo& io, const nlohmann::json& status, int64_t now) {
    const std::string state = text_at(status, "/state", "unknown");
    io.out << io.paint(state_colour(state), "*") << ' '
           << io.paint(Colour::kBold, text_at(status, "/name", "?")) << " - "
           << io.paint(state_colour(state), state) << '\n';
    if (state == "unreachable") line(io, "Problem", text_at(status, "/message"));
    line(io, "Running", running_text(status, now));
    line(io, "On disk", on_disk_text(io, status));
    line(io, "Previous", previous_text(status));
    line(io, "Update",
        text_at(status, "/update/id").empty()
            ? ""
            : text_at(status, "/update/id") + ", " + text_at(status, "/update/phase"));
    line(io, "Last update", last_update_text(status, now));
    line(io, "Machine", machine_text(status));
    line(io, "RAM to come", ram_to_come_text(io, status));
    line(io, "RAM from", text_at(status, "/ram_origin"));
    line(io, "Console", console_text(status));
    if (find(status, "/supervisor"))
        line(io, "Supervisor",
            text_at(status, "/supervisor/version", "unknown version") + ", pid " +
                std::to_string(number_at(status, "/supervisor/pid")));
    line(io, "File", text_at(status, "/config"));
    line(io, "Next", next_step(status, io.paths));
}

std::vector<std::string> list_titles() {
    return {"NAME", "STATE", "VERSION", "BUILD", "ON DISK", "VCPUS", "MEMORY", "LAST UPDATE"};
}

std::vector<std::string> list_row(const nlohmann::json& status) {
    const auto or_dash = [](std::string text) { return text.empty() ? "-" : text; };
    const bool has_machine = number_at(status, "/vcpus") > 0;
    std::string disk = "-";
    if (!text_at(status, "/on_disk/error").empty())
        disk = "unusable";
    else if (find(status, "/vmm"))
        disk = true_at(status, "/outdated") ? "differs" : "same";
    return {text_at(status, "/name", "?"), text_at(status, "/state", "unknown"),
        or_dash(text_at(status, "/vmm/version")), or_dash(short_build_id(text_at(status, "/vmm/build_id"))),
        disk, has_machine ? std::to_string(number_at(status, "/vcpus")) : "-",
        has_machine ? human_size(number_at(status, "/memory_bytes")) : "-", last_update_word(status)};
}

} // namespace liveupdate::supervisor::cli
