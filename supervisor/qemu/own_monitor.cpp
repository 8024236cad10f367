#include "supervisor/qemu/own_monitor.hpp"

#include <charconv>

#include "supervisor/qemu/descriptors.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

constexpr const char* kId = "liveupdate-qmp-"; // before the number

std::string chardev(const std::string& id) {
    return "socket,id=" + id + ",fd=" + std::to_string(kMonitorFd);
}

} // namespace

std::vector<std::string> monitor_arguments(handoff::Participant participant) {
    const std::string id = kId + std::to_string(participant);
    return {"-chardev", chardev(id), "-mon", "chardev=" + id + ",mode=control"};
}

std::optional<OwnMonitor> own_monitor(const std::vector<std::string>& arguments) {
    const std::string begin = std::string("socket,id=") + kId;
    for (size_t i = arguments.size(); i-- > 1;) {
        const std::string& value = arguments[i];
        if (!value.starts_with(begin)) continue;
        handoff::Participant number = 0;
        std::from_chars(value.data() + begin.size(), value.data() + value.size(), number);
        if (number != 0 && value == chardev(kId + std::to_string(number))) return OwnMonitor{number, i - 1};
    }
    return std::nullopt;
}

} // namespace liveupdate::supervisor::qemu
