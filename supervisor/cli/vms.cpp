#include "supervisor/cli/vms.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "supervisor/binary.hpp"
#include "supervisor/cli/control_client.hpp"
#include "supervisor/config.hpp"

namespace liveupdate::supervisor::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::seconds kStatusTimeout(5);

template <typename Function>
void for_each_entry(const std::string& folder, Function function) {
    std::error_code problem; // a folder that is not there has no entries
    for (fs::directory_iterator entry(folder, problem), end; !problem && entry != end;
         entry.increment(problem))
        function(entry->path());
}

void sort_once(std::vector<std::string>& names) {
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
}

bool exists(const std::string& path) {
    return ::access(path.c_str(), F_OK) == 0;
}

nlohmann::json binary_on_disk(const std::string& config_path) {
    const auto config = load_vm_config(config_path);
    if (!config) return {{"error", config.error().message}};
    const auto binary = inspect_binary(config->vmm_binary);
    if (!binary) return {{"binary", config->vmm_binary}, {"error", binary.error().message}};
    return {{"binary", binary->path}, {"build_id", binary->build_id}};
}

} // namespace

std::vector<std::string> vms_with_socket(const Paths& paths) {
    std::vector<std::string> names;
    for_each_entry(paths.runtime_dir, [&](const fs::path& entry) {
        const std::string name = entry.filename().string();
        if (check_vm_name(name) && exists(paths.control_socket(name))) names.push_back(name);
    });
    sort_once(names);
    return names;
}

std::vector<std::string> known_vms(const Paths& paths) {
    std::vector<std::string> names = vms_with_socket(paths);
    for_each_entry(paths.config_dir, [&](const fs::path& entry) {
        const std::string name = entry.stem().string();
        if (entry.extension() == ".toml" && check_vm_name(name)) names.push_back(name);
    });
    sort_once(names);
    return names;
}

Result<std::vector<std::string>> checked_names(const std::vector<std::string>& names) {
    std::vector<std::string> once;
    for (const auto& name : names) {
        TRY(check_vm_name(name));
        if (std::find(once.begin(), once.end(), name) == once.end()) once.push_back(name);
    }
    return once;
}

Result<nlohmann::json> vm_status(const Paths& paths, const std::string& name) {
    auto client = ControlClient::connect(paths, name);
    if (client) {
        TRY_ASSIGN(auto status, client->call({{"command", "status"}}, Deadline::after(kStatusTimeout)));
        if (!status.is_object())
            return Error(
                ErrorCode::kProtocol, "the supervisor of '" + name + "' sent a status that is no object");
        return status;
    }
    const bool has_config = exists(paths.config(name));
    const bool has_socket = exists(paths.control_socket(name));
    if (client.error().code != ErrorCode::kNotFound || (!has_config && !has_socket))
        return std::move(client).error();
    nlohmann::json status = {{"name", name}, {"state", has_socket ? "unreachable" : "stopped"},
        {"message", client.error().message}};
    if (has_config) {
        status["config"] = paths.config(name);
        status["on_disk"] = binary_on_disk(paths.config(name));
    }
    return status;
}

} // namespace liveupdate::supervisor::cli
