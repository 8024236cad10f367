#include <CLI/CLI.hpp>
#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>

#include "supervisor/cli/commands.hpp"
#include "supervisor/cli/control_client.hpp"
#include "supervisor/cli/json_view.hpp"
#include "supervisor/cli/record_view.hpp"
#include "supervisor/cli/status_view.hpp"
#include "supervisor/cli/vms.hpp"
#include "supervisor/control_protocol.hpp"
#include "supervisor/history.hpp"

namespace liveupdate::supervisor::cli {
namespace {

struct InspectArguments {
    std::vector<std::string> names;
    bool json = false;
};

struct HistoryArguments {
    std::string name;
    size_t limit = 20;
    bool json = false;
};

// A VM whose supervisor cannot be asked still has its place in a list.
nlohmann::json status_or_error(const Paths& paths, const std::string& name) {
    auto status = vm_status(paths, name);
    if (status) return std::move(*status);
    return {{"name", name}, {"state", "unreachable"}, {"message", status.error().message},
        {"error", error_to_json(status.error())}};
}

ExitCode run_list(CliIo& io, Format format) {
    std::vector<std::vector<std::string>> rows = {list_titles()};
    nlohmann::json all = nlohmann::json::array();
    for (const auto& name : known_vms(io.paths)) {
        all.push_back(status_or_error(io.paths, name));
        rows.push_back(list_row(all.back()));
    }
    if (format == Format::kJson) {
        print_json(io, all);
    } else if (all.empty()) {
        io.out << "no VM: neither a file in " << io.paths.config_dir << " nor a supervisor in "
               << io.paths.runtime_dir << '\n';
    } else {
        print_table(io.out, rows);
    }
    return ExitCode::kDone;
}

// Without names every VM is told of, and a stopped one is no failure.
ExitCode run_status(CliIo& io, const InspectArguments& arguments) {
    const auto names = checked_names(arguments.names.empty() ? known_vms(io.paths) : arguments.names);
    if (!names) return complain(io, names.error());
    if (names->empty() && !arguments.json) return run_list(io, Format::kText);
    ExitCode code = ExitCode::kDone;
    nlohmann::json all = nlohmann::json::array();
    for (const auto& name : *names) {
        auto status = vm_status(io.paths, name);
        if (!status) {
            code = worst(code, complain(io, status.error()));
            all.push_back({{"name", name}, {"error", error_to_json(status.error())}});
            continue;
        }
        if (!arguments.names.empty() || code_of_state(*status) == ExitCode::kLost)
            code = worst(code, code_of_state(*status));
        if (!arguments.json && !all.empty()) io.out << '\n';
        if (!arguments.json) print_status(io, *status, std::time(nullptr));
        all.push_back(std::move(*status));
    }
    if (arguments.json) print_json(io, all);
    return code;
}

// From the supervisor, or from the file when there is none.
Result<nlohmann::json> records_of(CliIo& io, const HistoryArguments& arguments) {
    auto client = ControlClient::connect(io.paths, arguments.name);
    if (client) {
        TRY_ASSIGN(auto answer, client->call({{"command", "history"}, {"limit", arguments.limit}},
                                    Deadline::after(std::chrono::seconds(10))));
        const auto* const records = find(answer, "/records");
        if (!records || !records->is_array())
            return Error(ErrorCode::kProtocol, "the supervisor of '" + arguments.name + "' sent no records");
        return nlohmann::json(*records);
    }
    if (client.error().code != ErrorCode::kNotFound) return std::move(client).error();
    TRY_ASSIGN(const auto content, read_history(io.paths.history(arguments.name)));
    if (content.records.empty()) return std::move(client).error();
    for (const auto& warning : content.warnings)
        io.err << "liveupdate: " << warning << '\n';
    nlohmann::json records = nlohmann::json::array();
    for (auto r = content.records.rbegin(); r != content.records.rend() && records.size() < arguments.limit;
         ++r)
        records.push_back(to_json(*r));
    return records;
}

ExitCode run_history(CliIo& io, const HistoryArguments& arguments) {
    auto records = records_of(io, arguments);
    if (!records) return complain(io, records.error());
    if (arguments.json) {
        print_json(io, *records);
        return ExitCode::kDone;
    }
    if (records->empty()) io.out << arguments.name << ": no update yet\n";
    for (const auto& json : *records) {
        const auto record = record_from_json(json);
        if (!record) {
            io.out << "unreadable: " << printable(record.error().message) << '\n';
            continue;
        }
        const Colour colour = colour_of(exit_code(record->outcome));
        io.out << local_time(static_cast<int64_t>(record->started_unix_ms / 1000)) << "  "
               << io.paint(Colour::kDim, printable(record->id)) << "  " << io.paint(colour, describe(*record))
               << '\n';
    }
    return ExitCode::kDone;
}

} // namespace

void add_inspect_commands(CLI::App& app, Action& chosen) {
    CLI::App& list = *app.add_subcommand("list", "One line for each VM");
    const auto listing = std::make_shared<InspectArguments>();
    list.add_flag("--json", listing->json, "print a JSON array of statuses");
    list.callback([listing, &chosen] {
        chosen = [listing](CliIo& io) { return run_list(io, listing->json ? Format::kJson : Format::kText); };
    });

    CLI::App& status = *app.add_subcommand("status", "What runs, what is on disk, and what to do next");
    const auto asking = std::make_shared<InspectArguments>();
    status.add_option("NAME", asking->names, "the VMs, by name; all of them without");
    status.add_flag("--json", asking->json, "print a JSON array of statuses");
    status.callback([asking, &chosen] { chosen = [asking](CliIo& io) { return run_status(io, *asking); }; });

    CLI::App& history = *app.add_subcommand("history", "The updates of a VM, the newest first");
    const auto looking = std::make_shared<HistoryArguments>();
    history.add_option("NAME", looking->name, "the VM")->required();
    history.add_option("-n,--limit", looking->limit, "so many at most")->capture_default_str();
    history.add_flag("--json", looking->json, "print a JSON array of records");
    history.callback(
        [looking, &chosen] { chosen = [looking](CliIo& io) { return run_history(io, *looking); }; });
}

} // namespace liveupdate::supervisor::cli
