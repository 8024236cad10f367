#include "supervisor/paths.hpp"

#include <doctest/doctest.h>

#include <map>

using namespace liveupdate::supervisor;

namespace {

Environment environment(std::map<std::string, std::string> values) {
    return [values = std::move(values)](const char* variable) -> const char* {
        const auto found = values.find(variable);
        return found == values.end() ? nullptr : found->second.c_str();
    };
}

} // namespace

TEST_CASE("root has the fixed folders") {
    const auto paths = resolve_paths(0, environment({{"XDG_RUNTIME_DIR", "/run/user/0"}, {"HOME", "/root"}}));
    REQUIRE(paths.has_value());
    CHECK(paths->control_socket("web1") == "/run/liveupdate/web1/control.sock");
    CHECK(paths->supervisor_pid("web1") == "/run/liveupdate/web1/supervisor.pid");
    CHECK(paths->supervisor_log("web1") == "/run/liveupdate/web1/supervisor.log");
    CHECK(paths->history("web1") == "/var/lib/liveupdate/web1/history.jsonl");
    CHECK(paths->config("web1") == "/etc/liveupdate/vms/web1.toml");
}

TEST_CASE("another user has XDG's folders, or those below the home") {
    const auto home =
        resolve_paths(1000, environment({{"XDG_RUNTIME_DIR", "/run/user/1000"}, {"HOME", "/home/ann"}}));
    REQUIRE(home.has_value());
    CHECK(home->runtime_dir == "/run/user/1000/liveupdate");
    CHECK(home->state_dir == "/home/ann/.local/state/liveupdate");
    CHECK(home->config_dir == "/home/ann/.config/liveupdate/vms");
    const auto xdg = resolve_paths(
        1000, environment({{"XDG_RUNTIME_DIR", "/r"}, {"XDG_STATE_HOME", "/s"}, {"XDG_CONFIG_HOME", "/c"}}));
    REQUIRE(xdg.has_value());
    CHECK(xdg->state_dir == "/s/liveupdate");
    CHECK(xdg->config_dir == "/c/liveupdate/vms");
}

TEST_CASE("our own variables come first, for root too") {
    const auto paths =
        resolve_paths(0, environment({{"LIVEUPDATE_RUNTIME_DIR", "/a/"}, {"LIVEUPDATE_STATE_DIR", "/b"},
                             {"LIVEUPDATE_CONFIG_DIR", "/c"}}));
    REQUIRE(paths.has_value());
    CHECK(paths->runtime_dir == "/a");
    CHECK(paths->vm_state_dir("x") == "/b/x");
    CHECK(paths->config("x") == "/c/x.toml");
}

TEST_CASE("a relative folder and no folder at all are refused in words") {
    const auto relative = resolve_paths(0, environment({{"LIVEUPDATE_STATE_DIR", "state"}}));
    REQUIRE_FALSE(relative.has_value());
    CHECK(relative.error().message ==
          "$LIVEUPDATE_STATE_DIR is 'state', which is not an absolute path; set one that is");
    const auto none = resolve_paths(1000, environment({{"HOME", "/home/ann"}, {"XDG_RUNTIME_DIR", ""}}));
    REQUIRE_FALSE(none.has_value());
    CHECK(none.error().message == "neither $LIVEUPDATE_RUNTIME_DIR nor $XDG_RUNTIME_DIR is set; set "
                                  "$LIVEUPDATE_RUNTIME_DIR to a folder of yours");
}

TEST_CASE("a VM's name cannot lead out of its folder") {
    for (const char* good : {"web1", "a", "0.x_y-z"})
        CHECK(check_vm_name(good).has_value());
    CHECK(check_vm_name(std::string(63, 'a')).has_value());
    for (const char* bad : {"", ".", "..", "../x", "a/b", "-a", ".a", "Web1", "a b", "ä"}) {
        CAPTURE(bad);
        CHECK_FALSE(check_vm_name(bad).has_value());
    }
    CHECK_FALSE(check_vm_name(std::string(64, 'a')).has_value());
    CHECK_FALSE(check_vm_name(std::string("a\0b", 3)).has_value());
}
