#include "supervisor/cli/io.hpp"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>

namespace liveupdate::supervisor::cli {
namespace {

const char* code_of(Colour colour) {
    switch (colour) {
    case Colour::kBold:
        return "\033[1m";
    case Colour::kDim:
        return "\033[2m";
    case Colour::kRed:
        return "\033[31m";
    case Colour::kGreen:
        return "\033[32m";
    case Colour::kYellow:
        return "\033[33m";
    }
    return "";
}

size_t width_of(std::string_view text) {
    return static_cast<size_t>(std::count_if(
        text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

} // namespace

std::string CliIo::paint(Colour colour, std::string_view text) const {
    if (colours == Colours::kOff) return std::string(text);
    return code_of(colour) + std::string(text) + "\033[0m";
}

Output detect_output() {
    return ::isatty(STDOUT_FILENO) ? Output::kTerminal : Output::kPipe;
}

Colours detect_colours(Output output) {
    const char* const no_color = std::getenv("NO_COLOR");
    const char* const term = std::getenv("TERM");
    const bool plain = (no_color && *no_color) || (term && std::string_view(term) == "dumb");
    return output == Output::kTerminal && !plain ? Colours::kOn : Colours::kOff;
}

size_t detect_columns() {
    winsize size{};
    if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
    return 80;
}

ExitCode complain(CliIo& io, const Error& error) {
    std::istringstream lines(error.message);
    for (std::string line; std::getline(lines, line);)
        io.err << "liveupdate: " << printable(line) << '\n';
    return exit_code(error);
}

void print_json(CliIo& io, const nlohmann::json& json) {
    io.out << json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
}

void print_table(std::ostream& out, const std::vector<std::vector<std::string>>& rows) {
    std::vector<size_t> widths;
    for (const auto& row : rows) {
        widths.resize(std::max(widths.size(), row.size()));
        for (size_t i = 0; i < row.size(); ++i)
            widths[i] = std::max(widths[i], width_of(row[i]));
    }
    for (const auto& row : rows) {
        std::string line;
        for (size_t i = 0; i < row.size(); ++i) {
            line += row[i];
            if (i + 1 < row.size()) line.append(widths[i] - width_of(row[i]) + 2, ' ');
        }
        out << line << '\n';
    }
}

std::string printable(std::string_view text) {
    std::string clean(text);
    std::replace_if(
        clean.begin(), clean.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; },
        ' ');
    return clean;
}

} // namespace liveupdate::supervisor::cli
