#include "supervisor/qemu/own_monitor.hpp"

#include <charconv>

#include "supervisor/qemu/descriptors.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

constexpr std::string_view kBegin = "socket,id=liveupdate-qmp-";

std::string id_of(handoff::Participant participant) {
    return "liveupdate-qmp-" + std::to_string(participant);
}

} // namespace

std::vector<std::string> monitor_arguments(handoff::Participant participant) {
    const std::string id = id_of(participant);
    return {"-chardev", "socket,id=" + id + ",fd=" + std::to_string(kMonitorFd), "-mon",
        "chardev=" + id + ",mode=control"};
}

std::optional<OwnMonitor> own_monitor(const std::vector<std::string>& arguments) {
    for (size_t i = arguments.size(); i-- > 1;) {
        const std::string& value = arguments[i];
        if (!value.starts_with(kBegin)) continue;
        handoff::Participant number = 0;
        std::from_chars(value.data() + kBegin.size(), value.data() + value.size(), number);
        if (number != 0 && value == monitor_arguments(number)[1]) return OwnMonitor{number, i - 1};
    }
    return std::nullopt;
}

} // namespace liveupdate::supervisor::qemu
