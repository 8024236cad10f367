#include "supervisor/qemu/compare.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

using nlohmann::json;

constexpr size_t kMostDevices = 4096;
constexpr int kDeepest = 3; // children of devices are made by the devices themselves

constexpr const char* kBoard = "/machine/unattached";

struct Asker {
    QemuProcess& qemu;
    const std::string& who;
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
            return Error(ErrorCode::kProtocol, ask.who + " has too many devices");
        found[path + "/" + name] = type.substr(6, type.size() - 7);
        if (depth < kDeepest && type == "child<container>")
            TRY(add_devices(ask, path + "/" + name, depth + 1, found));
    }
    return {};
}

} // namespace

Result<ComparedSide> side_of(QemuProcess& qemu, const std::string& who, Deadline deadline, int cancel_fd) {
    const Asker ask{qemu, who, deadline, cancel_fd};
    ComparedSide side{who, qemu.monitor().version(), {}};
    for (const char* path : {"/machine/peripheral", "/machine/peripheral-anon", kBoard})
        TRY(add_devices(ask, path, 1, side.devices));
    return side;
}

Result<void> compare_devices(ComparedSide source, ComparedSide destination) {
    // Where a board has its own devices changes from release to release; that the state of the ones fits the
    // others is what QEMU promises for a versioned machine type.
    if (source.version != destination.version)
        for (auto* side : {&source, &destination})
            std::erase_if(side->devices, [](const auto& each) { return each.first.starts_with(kBoard); });
    for (const auto& [path, type] : source.devices) {
        const auto found = destination.devices.find(path);
        if (found == destination.devices.end())
            return Error(ErrorCode::kRefused, destination.who + " has no " + path + " (" + type + ")");
        if (found->second != type)
            return Error(ErrorCode::kRefused, destination.who + " has a '" + found->second + "' at " + path +
                                                  ", where " + source.who + " has a '" + type + "'");
    }
    for (const auto& [path, type] : destination.devices)
        if (!source.devices.contains(path))
            return Error(ErrorCode::kRefused,
                destination.who + " has " + path + " (" + type + "), which " + source.who + " has not");
    return {};
}

Result<void> compare_guests(QemuProcess& source, QemuProcess& destination, Deadline deadline, int cancel_fd) {
    TRY_ASSIGN(ComparedSide here, side_of(source, "the source", deadline, cancel_fd));
    TRY_ASSIGN(ComparedSide there, side_of(destination, "the destination", deadline, cancel_fd));
    TRY_ASSIGN(const std::string ours, machine_type({source, here.who, deadline, cancel_fd}));
    TRY_ASSIGN(const std::string theirs, machine_type({destination, there.who, deadline, cancel_fd}));
    if (ours != theirs)
        return Error(ErrorCode::kRefused,
            "the machine is a '" + ours + "' in the source and a '" + theirs + "' in the destination");
    return compare_devices(std::move(here), std::move(there));
}

} // namespace liveupdate::supervisor::qemu
