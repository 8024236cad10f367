#include "supervisor/qemu/vnc.hpp"

#include <algorithm>

namespace liveupdate::supervisor::qemu {
namespace {

using nlohmann::json;

json unix_address(const std::string& path) {
    return {{"type", "unix"}, {"path", path}};
}
json inet_address(const std::string& host, const std::string& port) {
    return {{"type", "inet"}, {"host", host}, {"port", port}};
}

std::string words_of_all(const json& addresses) {
    std::string text;
    for (const json& each : addresses) {
        const bool at_path = word_in(each, "type") == "unix";
        if (!text.empty()) text += ", ";
        text += at_path ? "unix:" + word_in(each, "path")
                        : word_in(each, "host") + ", port " + word_in(each, "port");
    }
    return text;
}

// What follows `-vnc`; null: there is none.
const std::string* option_in(const std::vector<std::string>& guest_arguments) {
    const auto found = std::find(guest_arguments.begin(), guest_arguments.end(), "-vnc");
    const bool is_last = found == guest_arguments.end() || std::next(found) == guest_arguments.end();
    return is_last ? nullptr : &*std::next(found);
}

} // namespace

std::string vnc_option(const VncConfig& vnc) {
    return vnc.options.empty() ? "none" : "none," + vnc.options;
}

Result<json> vnc_addresses(
    QemuProcess& qemu, const std::vector<std::string>& guest_arguments, Deadline deadline) {
    json addresses = json::array();
    if (option_in(guest_arguments) == nullptr) return addresses; // nor need QEMU know of VNC at all
    TRY_ASSIGN(const json servers, qemu.execute("query-vnc-servers", nullptr, deadline));
    for (const json& server : servers) {
        const auto places = server.find("server");
        if (places == server.end() || !places->is_array()) continue;
        for (const json& place : *places) {
            const std::string service = word_in(place, "service"); // the path, where it is at one
            addresses.push_back(word_in(place, "family") == "unix"
                                    ? unix_address(service)
                                    : inet_address(word_in(place, "host"), service));
        }
    }
    return addresses;
}

json wanted_vnc_addresses(
    const std::optional<VncConfig>& vnc, const std::vector<std::string>& guest_arguments) {
    const std::string* option = option_in(guest_arguments);
    if (!vnc || option == nullptr || *option != vnc_option(*vnc)) return json::array();
    return json::array(
        {vnc->path.empty() ? inet_address(vnc->host, std::to_string(vnc->port)) : unix_address(vnc->path)});
}

Result<void> show_vnc(QemuProcess& qemu, const json& addresses, Deadline deadline) {
    auto shown = qemu.execute("display-update", {{"type", "vnc"}, {"addresses", addresses}}, deadline);
    if (!shown)
        return std::move(shown).error().context(
            "VNC does not listen at " + words_of_all(addresses) + " (needs QEMU 7.1)");
    return {};
}

} // namespace liveupdate::supervisor::qemu
