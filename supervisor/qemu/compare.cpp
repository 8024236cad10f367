#include "supervisor/qemu/compare.hpp"

#include <map>
#include <vector>

namespace liveupdate::supervisor::qemu {
namespace {

using nlohmann::json;

constexpr size_t kMostDevices = 4096;
constexpr int kDeepest = 3; // children of devices are made by the devices themselves

struct Asker {
    QemuProcess& qemu;
    const char* who;
    Deadline deadline;
    int cancel_fd;

    Result<json> operator()(const std::string& command, json arguments = nullptr) const {
        return qemu.execute(command, std::move(arguments), deadline, cancel_fd).context(who);
    }
};

Result<std::string> machine_type(const Asker& ask) {
    TRY_ASSIGN(const json type, ask("qom-get", {{"path", "/machine"}, {"property", "type"}}));
    return type.is_string() ? type.get<std::string>() : std::string();
}

// path -> type of what the command line and the board have made.
Result<void> add_devices(
    const Asker& ask, const std::string& path, int depth, std::map<std::string, std::string>& found) {
    TRY_ASSIGN(const json children, ask("qom-list", {{"path", path}}));
    if (!children.is_array()) return {};
    for (const json& each : children) {
        const std::string type = word_in(each, "type"), name = word_in(each, "name");
        if (!type.starts_with("child<") || type == "child<qemu:memory-region>") continue;
        if (found.size() >= kMostDevices)
            return Error(ErrorCode::kProtocol, std::string(ask.who) + " has too many devices");
        found[path + "/" + name] = type.substr(6, type.size() - 7);
        if (depth < kDeepest && type == "child<container>")
            TRY(add_devices(ask, path + "/" + name, depth + 1, found));
    }
    return {};
}

Result<void> compare_devices(const Asker& source, const Asker& destination) {
    std::vector<const char*> folders = {"/machine/peripheral", "/machine/peripheral-anon"};
    // Where a board has its own devices changes from release to release; that the state of the ones fits the
    // others is what QEMU promises for a versioned machine type.
    if (source.qemu.monitor().version() == destination.qemu.monitor().version())
        folders.push_back("/machine/unattached");
    std::map<std::string, std::string> ours, theirs;
    for (const char* path : folders) {
        TRY(add_devices(source, path, 1, ours));
        TRY(add_devices(destination, path, 1, theirs));
    }
    for (const auto& [path, type] : ours) {
        const auto found = theirs.find(path);
        if (found == theirs.end())
            return Error(ErrorCode::kRefused, "the destination has no " + path + " (" + type + ")");
        if (found->second != type)
            return Error(ErrorCode::kRefused, "the destination has a '" + found->second + "' at " + path +
                                                  ", where the source has a '" + type + "'");
    }
    for (const auto& [path, type] : theirs)
        if (!ours.contains(path))
            return Error(ErrorCode::kRefused,
                "the destination has " + path + " (" + type + "), which the source has not");
    return {};
}

} // namespace

Result<void> compare_guests(QemuProcess& source, QemuProcess& destination, Deadline deadline, int cancel_fd) {
    const Asker here{source, "the source", deadline, cancel_fd};
    const Asker there{destination, "the destination", deadline, cancel_fd};
    TRY_ASSIGN(const std::string ours, machine_type(here));
    TRY_ASSIGN(const std::string theirs, machine_type(there));
    if (ours != theirs)
        return Error(ErrorCode::kRefused,
            "the machine is a '" + ours + "' in the source and a '" + theirs + "' in the destination");
    return compare_devices(here, there);
}

} // namespace liveupdate::supervisor::qemu
