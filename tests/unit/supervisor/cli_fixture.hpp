// Runs the command in this process and keeps what it printed.
#pragma once

#include <sstream>
#include <string>
#include <vector>

#include "supervisor/cli/app.hpp"
#include "test_folder.hpp"

namespace liveupdate::supervisor {

struct CliFixture {
    TestFolder folder;
    Paths paths = folder.paths();
    std::string out;
    std::string err;
    std::string program = "/nonexistent/liveupdated";
    cli::Output output = cli::Output::kPipe;
    cli::Colours colours = cli::Colours::kOff;

    int run(std::vector<std::string> arguments) {
        std::ostringstream out_stream;
        std::ostringstream err_stream;
        cli::CliIo io{out_stream, err_stream, paths, output, colours, 80, program};
        const ExitCode code = cli::run_command(io, std::move(arguments));
        out = out_stream.str();
        err = err_stream.str();
        return static_cast<int>(code);
    }
    void write_config(const std::string& name) {
        folder.write("vms/" + name + ".toml",
            "[vmm]\nbinary = \"/proc/self/exe\"\n[machine]\nkernel = \"/k\"\n[[memory]]\nsize = \"16M\"\n");
    }
};

} // namespace liveupdate::supervisor
