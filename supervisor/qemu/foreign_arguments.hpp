// The command line of a QEMU that somebody else has started, read for what later QEMUs of its guest are to be
// started with, and for what would go wrong then. Pure.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace liveupdate::supervisor::qemu {

struct ForeignArguments {
    // Without what belongs to one process: monitors, -pidfile, -daemonize, -S, -incoming, -loadvm; the
    // machine type exact.
    std::vector<std::string> arguments;
    // What stands in the way of an update, a sentence each.
    std::vector<std::string> obstacles;
};

// `arguments` without the program's name. `machine_type`: what the guest's machine has become, "pc-q35-7.2".
// `is_relative_file`: whether a path that does not begin with '/' leads to something where that QEMU works.
ForeignArguments read_foreign_arguments(const std::vector<std::string>& arguments,
    const std::string& machine_type, const std::function<bool(const std::string&)>& is_relative_file);

} // namespace liveupdate::supervisor::qemu
