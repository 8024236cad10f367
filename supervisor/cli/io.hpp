// Where a command writes and what it finds its VMs by; made once in main(), by hand in tests.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include "handoff/base/result.hpp"
#include "supervisor/exit_code.hpp"
#include "supervisor/paths.hpp"

namespace liveupdate::supervisor::cli {

enum class Output { kPipe, kTerminal };
enum class Format { kText, kJson };
enum class Colours { kOff, kOn };
enum class Colour { kBold, kDim, kRed, kGreen, kYellow };

struct CliIo {
    std::ostream& out; // what was asked for
    std::ostream& err; // what went wrong
    Paths paths;
    Output output = Output::kPipe; // of `out`
    Colours colours = Colours::kOff;
    size_t columns = 80;
    std::string supervisor_program{}; // liveupdated

    // `text` in a colour, or as it is without colours.
    std::string paint(Colour colour, std::string_view text) const;
};

// Of standard output: colours on a terminal, unless NO_COLOR is set or TERM is "dumb".
Output detect_output();
Colours detect_colours(Output output);
size_t detect_columns();

// Writes "liveupdate: sentence" to io.err, each line of the sentence by itself, and gives its exit code.
ExitCode complain(CliIo& io, const Error& error);

// One JSON document and a newline.
void print_json(CliIo& io, const nlohmann::json& json);

// Rows of equally many cells, in columns that are as wide as their widest cell; UTF-8 counts by characters.
void print_table(std::ostream& out, const std::vector<std::vector<std::string>>& rows);

// Without control characters, which a peer's words might smuggle onto a terminal.
std::string printable(std::string_view text);

} // namespace liveupdate::supervisor::cli
