#include <doctest/doctest.h>

#include "supervisor/cli/start_command.hpp"
#include "tests/unit/supervisor/test_folder.hpp"

using namespace liveupdate::supervisor;

namespace {

constexpr uid_t kAnn = 1000;

// Ann's home, and our variable where it is given.
Environment environment(const char* own_config_dir = nullptr) {
    return [own_config_dir](const char* variable) -> const char* {
        const std::string_view name = variable;
        if (name == "LIVEUPDATE_CONFIG_DIR") return own_config_dir;
        if (name == "HOME") return "/home/ann";
        return name == "XDG_RUNTIME_DIR" ? "/run/user/1000" : nullptr;
    };
}

Paths paths_of(uid_t uid, const Environment& environment) {
    auto paths = resolve_paths(uid, environment);
    REQUIRE(paths.has_value());
    paths->runtime_dir = "/nowhere"; // no log of the host's own VMs
    return *paths;
}

std::string command_of(uid_t uid, const Environment& environment, bool systemd) {
    return cli::start_command(paths_of(uid, environment), "web1", {uid, environment, systemd});
}

} // namespace

TEST_CASE("a VM of a systemd host is started by its unit") {
    CHECK(command_of(0, environment(), true) == "systemctl start liveupdate@web1");
    CHECK(command_of(kAnn, environment(), true) == "systemctl --user start liveupdate@web1");
    CHECK(command_of(kAnn, environment("/etc/liveupdate/vms"), true) == "systemctl start liveupdate@web1");
}

TEST_CASE("a VM that no unit can start is started by the command") {
    CHECK(command_of(0, environment(), false) == "liveupdate start web1");
    CHECK(command_of(kAnn, environment(), false) == "liveupdate start web1");
    CHECK(command_of(0, environment("/srv/vms"), true) == "liveupdate start web1");
    CHECK(command_of(kAnn, environment("/srv/vms"), true) == "liveupdate start web1");
}

TEST_CASE("a VM that was started by the command is started so again") {
    const TestFolder folder;
    Paths paths = paths_of(0, environment());
    paths.runtime_dir = folder.path();
    REQUIRE(make_directories(paths.vm_runtime_dir("web1")).has_value());
    folder.write("web1/supervisor.log", "");
    CHECK(cli::start_command(paths, "web1", {0, environment(), true}) == "liveupdate start web1");
    CHECK(cli::start_command(paths, "web2", {0, environment(), true}) == "systemctl start liveupdate@web2");
}
