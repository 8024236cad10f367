#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "supervisor/cli/commands.hpp"
#include "supervisor/cli/doctor_checks.hpp"

namespace liveupdate::supervisor::cli {
namespace {

Colour colour_of(Verdict verdict) {
    if (verdict == Verdict::kOk) return Colour::kGreen;
    return verdict == Verdict::kWarn ? Colour::kYellow : Colour::kRed;
}

void print_check(CliIo& io, const Check& check) {
    std::string word(to_string(check.verdict));
    word.resize(4, ' ');
    // Found words may have several lines (a file's errors): the first here, the rest below.
    std::string found;
    for (const char c : check.found)
        found += c == '\n' ? std::string("\n        ") : std::string(1, c);
    io.out << io.paint(colour_of(check.verdict), word) << "  " << check.name << ": " << found << '\n';
    if (!check.advice.empty()) io.out << "      " << io.paint(Colour::kDim, "-> ") << check.advice << '\n';
}

ExitCode run_doctor(CliIo& io, Format format) {
    std::vector<Check> checks = check_kvm();
    for (auto part : {check_host(io.paths), check_vms(io.paths)})
        std::move(part.begin(), part.end(), std::back_inserter(checks));
    const auto count = [&](Verdict verdict) {
        return std::count_if(
            checks.begin(), checks.end(), [&](const Check& c) { return c.verdict == verdict; });
    };
    const auto failures = count(Verdict::kFail);
    if (format == Format::kJson) {
        nlohmann::json all = nlohmann::json::array();
        for (const auto& c : checks)
            all.push_back({{"name", c.name}, {"verdict", to_string(c.verdict)}, {"found", c.found},
                {"advice", c.advice}});
        print_json(
            io, {{"checks", std::move(all)}, {"failures", failures}, {"warnings", count(Verdict::kWarn)}});
    } else {
        for (const auto& check : checks)
            print_check(io, check);
        io.out << checks.size() << " checks; warnings: " << count(Verdict::kWarn)
               << ", failures: " << failures << '\n';
    }
    return failures == 0 ? ExitCode::kDone : ExitCode::kFailed;
}

} // namespace

void add_doctor_command(CLI::App& app, Action& chosen) {
    CLI::App& doctor = *app.add_subcommand("doctor", "Check this host, and say what to do");
    const auto json = std::make_shared<bool>(false);
    doctor.add_flag("--json", *json, "print a JSON object");
    doctor.callback([json, &chosen] {
        chosen = [json](CliIo& io) { return run_doctor(io, *json ? Format::kJson : Format::kText); };
    });
}

} // namespace liveupdate::supervisor::cli
