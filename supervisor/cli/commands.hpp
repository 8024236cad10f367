// The commands by group: each function adds its subcommands to the parser. A subcommand that was given sets
// `chosen` to what is then run; nothing is done while parsing.
#pragma once

#include <functional>

#include "supervisor/cli/io.hpp"

namespace CLI {
class App;
}

namespace liveupdate::supervisor::cli {

using Action = std::function<ExitCode(CliIo&)>;

void add_lifecycle_commands(CLI::App& app, Action& chosen); // start, stop
void add_inspect_commands(CLI::App& app, Action& chosen);   // list, status, history
void add_update_commands(CLI::App& app, Action& chosen);    // now, plan, abort, rollback
void add_rollout_commands(CLI::App& app, Action& chosen);   // reload, rollout
void add_adopt_command(CLI::App& app, Action& chosen);
void add_save_commands(CLI::App& app, Action& chosen); // save, restore
void add_template_commands(CLI::App& app, Action& chosen);
void add_clone_command(CLI::App& app, Action& chosen);
void add_console_command(CLI::App& app, Action& chosen);
void add_doctor_command(CLI::App& app, Action& chosen);

} // namespace liveupdate::supervisor::cli
