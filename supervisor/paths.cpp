#include "supervisor/paths.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <optional>

namespace liveupdate::supervisor {
namespace {

constexpr size_t kLongestName = 63;

bool is_lower_or_digit(char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

// One folder: our own variable, root's fixed place, else a base folder of the user's.
struct Place {
    const char* variable;
    const char* for_root;
    const char* xdg_variable;
    const char* below_home; // where $XDG_… is when it is not set; nullptr: nowhere
    const char* below_base;
};

// The value when it is set and not empty, which is how the XDG specification reads them.
std::optional<std::string> value_of(const Environment& environment, const char* variable) {
    const char* const value = environment(variable);
    if (!value || !*value) return std::nullopt;
    return std::string(value);
}

Result<std::string> absolute(const char* variable, std::string value) {
    if (value.front() != '/')
        return Error(ErrorCode::kInvalid, "$" + std::string(variable) + " is '" + value +
                                              "', which is not an absolute path; set one that is");
    while (value.size() > 1 && value.back() == '/')
        value.pop_back();
    return value;
}

Result<std::string> resolve(const Place& place, uid_t uid, const Environment& environment) {
    if (auto own = value_of(environment, place.variable)) return absolute(place.variable, std::move(*own));
    if (uid == 0) return std::string(place.for_root);
    if (auto base = value_of(environment, place.xdg_variable)) {
        TRY_ASSIGN(const std::string folder, absolute(place.xdg_variable, std::move(*base)));
        return folder + place.below_base;
    }
    if (place.below_home) {
        if (auto home = value_of(environment, "HOME")) {
            TRY_ASSIGN(const std::string folder, absolute("HOME", std::move(*home)));
            return folder + place.below_home + place.below_base;
        }
    }
    return Error(ErrorCode::kInvalid, "neither $" + std::string(place.variable) + " nor $" +
                                          place.xdg_variable + " is set; set $" + place.variable +
                                          " to a folder of yours");
}

} // namespace

Result<void> check_vm_name(std::string_view name) {
    const bool good = !name.empty() && name.size() <= kLongestName && is_lower_or_digit(name.front()) &&
                      std::all_of(name.begin(), name.end(),
                          [](char c) { return is_lower_or_digit(c) || c == '.' || c == '_' || c == '-'; });
    if (good) return {};
    return Error(ErrorCode::kInvalid, "'" + std::string(name.substr(0, 80)) +
                                          "' is not a VM name; use 1 to 63 of a-z, 0-9, '.', '_' and '-', "
                                          "beginning with a letter or a digit");
}

std::string Paths::vm_runtime_dir(std::string_view name) const {
    return runtime_dir + "/" + std::string(name);
}
std::string Paths::control_socket(std::string_view name) const {
    return vm_runtime_dir(name) + "/control.sock";
}
std::string Paths::supervisor_pid(std::string_view name) const {
    return vm_runtime_dir(name) + "/supervisor.pid";
}
std::string Paths::supervisor_log(std::string_view name) const {
    return vm_runtime_dir(name) + "/supervisor.log";
}
std::string Paths::vm_state_dir(std::string_view name) const {
    return state_dir + "/" + std::string(name);
}
std::string Paths::history(std::string_view name) const {
    return vm_state_dir(name) + "/history.jsonl";
}
std::string Paths::config(std::string_view name) const {
    return config_dir + "/" + std::string(name) + ".toml";
}

std::string Paths::host_policy() const {
    return std::filesystem::path(config_dir).parent_path() / "liveupdate.toml";
}
std::string Paths::rollout_slot(unsigned number) const {
    return runtime_dir + "/.slot-" + std::to_string(number);
}
std::string Paths::templates() const {
    return state_dir + "/.templates";
}

Result<Paths> resolve_paths(uid_t uid, const Environment& environment) {
    const Place runtime{
        "LIVEUPDATE_RUNTIME_DIR", "/run/liveupdate", "XDG_RUNTIME_DIR", nullptr, "/liveupdate"};
    const Place state{
        "LIVEUPDATE_STATE_DIR", "/var/lib/liveupdate", "XDG_STATE_HOME", "/.local/state", "/liveupdate"};
    const Place config{
        "LIVEUPDATE_CONFIG_DIR", "/etc/liveupdate/vms", "XDG_CONFIG_HOME", "/.config", "/liveupdate/vms"};
    Paths paths;
    TRY_ASSIGN(paths.runtime_dir, resolve(runtime, uid, environment));
    TRY_ASSIGN(paths.state_dir, resolve(state, uid, environment));
    TRY_ASSIGN(paths.config_dir, resolve(config, uid, environment));
    return paths;
}

Result<Paths> resolve_paths() {
    return resolve_paths(
        ::geteuid(), [](const char* variable) -> const char* { return std::getenv(variable); });
}

Result<void> make_directories(const std::string& path) {
    std::error_code problem;
    std::filesystem::create_directories(path, problem);
    if (!problem) return {};
    return Error(ErrorCode::kSystem, "make folder " + path + ": " + problem.message(), problem.value());
}

} // namespace liveupdate::supervisor
