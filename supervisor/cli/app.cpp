#include "supervisor/cli/app.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "liveupdate_version.hpp"
#include "supervisor/cli/commands.hpp"

namespace liveupdate::supervisor::cli {
namespace {

constexpr const char* kFooter = R"(
Exit codes: 0 done; 1 internal error; 2 wrong usage or configuration; 3 nothing to do; 4 refused;
5 rolled back or abandoned (the guest goes on in the source); 6 failed; 7 guest lost;
8 no such VM or no supervisor; 9 permission denied; 10 aborted. For several VMs: the worst.)";

ExitCode print_version(CliIo& io, Format format) {
    if (format == Format::kJson)
        print_json(io, {{"name", "liveupdate"}, {"version", kVersion}});
    else
        io.out << "liveupdate " << kVersion << '\n';
    return ExitCode::kDone;
}

void add_version_command(CLI::App& app, Action& chosen) {
    CLI::App& version = *app.add_subcommand("version", "The version of this command");
    const auto json = std::make_shared<bool>(false);
    version.add_flag("--json", *json, "print a JSON object");
    version.callback([json, &chosen] {
        chosen = [json](CliIo& io) { return print_version(io, *json ? Format::kJson : Format::kText); };
    });
}

// The command that was given, down to the innermost, and its words.
std::pair<const CLI::App*, std::string> given_command(const CLI::App& app) {
    const CLI::App* innermost = &app;
    std::string words = "liveupdate";
    while (!innermost->get_subcommands().empty()) {
        innermost = innermost->get_subcommands().front();
        words += " " + innermost->get_name();
    }
    return {innermost, words};
}

// CLI11's sentence, and where to read on; of the subcommand when one was given.
ExitCode usage_error(CliIo& io, const CLI::App& app, const CLI::ParseError& problem) {
    const std::string command = given_command(app).second;
    std::string sentence = problem.what();
    std::replace(sentence.begin(), sentence.end(), '\n', ' ');
    if (!sentence.empty()) sentence.front() = static_cast<char>(std::tolower(sentence.front()));
    return complain(io, Error(ErrorCode::kInvalid, sentence + "; see `" + command + " --help`"));
}

ExitCode parse_and_run(CliIo& io, std::vector<std::string> arguments) {
    CLI::App app("Replaces the hypervisor binary under running virtual machines.", "liveupdate");
    app.footer(kFooter);
    app.require_subcommand(1);
    bool version = false;
    app.add_flag("--version", version, "the same as `version`");
    Action chosen;
    add_update_commands(app, chosen);
    add_rollout_commands(app, chosen);
    add_inspect_commands(app, chosen);
    add_lifecycle_commands(app, chosen);
    add_adopt_command(app, chosen);
    add_save_commands(app, chosen);
    add_template_commands(app, chosen);
    add_clone_command(app, chosen);
    add_console_command(app, chosen);
    add_doctor_command(app, chosen);
    add_version_command(app, chosen);
    std::reverse(arguments.begin(), arguments.end()); // as CLI11 wants a vector
    try {
        app.parse(std::move(arguments));
    } catch (const CLI::CallForHelp&) {
        const auto [command, words] = given_command(app);
        io.out << (command == &app ? app.help() : command->help(words.substr(0, words.rfind(' '))));
        return ExitCode::kDone;
    } catch (const CLI::RequiredError& problem) {
        if (version && app.get_subcommands().empty()) return print_version(io, Format::kText);
        return usage_error(io, app, problem);
    } catch (const CLI::ParseError& problem) {
        return usage_error(io, app, problem);
    }
    return chosen(io);
}

} // namespace

ExitCode run_command(CliIo& io, std::vector<std::string> arguments) {
    try {
        return parse_and_run(io, std::move(arguments));
    } catch (const std::exception& problem) {
        return complain(io, Error(ErrorCode::kInternal,
                                std::string("internal error: ") + problem.what() + "; please report it"));
    }
}

} // namespace liveupdate::supervisor::cli
