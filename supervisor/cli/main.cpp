#include <csignal>
#include <iostream>

#include "supervisor/cli/app.hpp"
#include "supervisor/cli/supervisor_process.hpp"

int main(int argc, char** argv) {
    using namespace liveupdate::supervisor;
    ::signal(SIGPIPE, SIG_IGN); // a reader that goes away (`| head`) must not end an update's command halfway
    cli::CliIo io{std::cout, std::cerr, {}};
    io.output = cli::detect_output();
    io.colours = cli::detect_colours(io.output);
    io.columns = cli::detect_columns();
    io.supervisor_program = cli::find_supervisor_program();
    auto paths = resolve_paths();
    if (!paths) return static_cast<int>(cli::complain(io, paths.error()));
    io.paths = std::move(*paths);
    return static_cast<int>(cli::run_command(io, std::vector<std::string>(argv + 1, argv + argc)));
}
