#include "supervisor/cli/start_command.hpp"

#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <cstdlib>
#include <string_view>

namespace liveupdate::supervisor::cli {
namespace {

// Where the unit of a manager reads VM files (%E): our own variables are none of a manager's.
bool is_unit_folder(const std::string& folder, uid_t manager, const Environment& environment) {
    const auto paths = resolve_paths(manager, [&](const char* variable) -> const char* {
        return std::string_view(variable).starts_with("LIVEUPDATE_") ? nullptr : environment(variable);
    });
    return paths && paths->config_dir == folder;
}

} // namespace

std::string start_command(const Paths& paths, const std::string& name, const StartContext& context) {
    if (context.systemd && ::access(paths.supervisor_log(name).c_str(), F_OK) < 0) {
        if (is_unit_folder(paths.config_dir, 0, context.environment))
            return "systemctl start liveupdate@" + name;
        if (is_unit_folder(paths.config_dir, context.uid, context.environment))
            return "systemctl --user start liveupdate@" + name;
    }
    return "liveupdate start " + name;
}

std::string start_command(const Paths& paths, const std::string& name) {
    const Environment environment = [](const char* variable) -> const char* { return std::getenv(variable); };
    return start_command(paths, name, {::geteuid(), environment, sd_booted() > 0});
}

Error not_running(const Paths& paths, const std::string& name) {
    return {ErrorCode::kNotFound, "'" + name + "' is not running; run `" + start_command(paths, name) + "`"};
}

} // namespace liveupdate::supervisor::cli
