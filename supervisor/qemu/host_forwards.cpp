#include "supervisor/qemu/host_forwards.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sstream>

#include "handoff/base/words.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

constexpr size_t kMostWords = 300;
constexpr size_t kMostForwards = 1024; // that are carried over; a peer tells how many there are

Result<std::string> say(QemuProcess& qemu, const std::string& line, Deadline deadline) {
    TRY_ASSIGN(const nlohmann::json answer,
        qemu.execute("human-monitor-command", {{"command-line", line}}, deadline));
    if (!answer.is_string()) return Error(ErrorCode::kProtocol, "QEMU has no text as answer to " + line);
    return answer.get<std::string>();
}

// As QEMU takes ids, and makes some up ("#net012", "user.0"). What a QEMU says is put into a command to the
// next one.
bool is_id(std::string_view word) {
    constexpr std::string_view kOthers = "-._#";
    return std::all_of(word.begin(), word.end(), [&](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               kOthers.find(c) != std::string_view::npos;
    });
}

// Of "Hub -1 (net0):"; empty: it is none that could be named in a command.
std::string netdev_of(const std::string& line) {
    const size_t begin = line.find('('), end = line.rfind("):");
    if (begin == std::string::npos || end == std::string::npos || end < begin) return {};
    std::string netdev = line.substr(begin + 1, end - begin - 1);
    return is_id(netdev) ? netdev : std::string();
}

// Of "TCP[HOST_FORWARD]  8  127.0.0.1 2222  10.0.2.15 22  0 0", where "*" is every address; false: it is
// none.
bool read_forward(const std::string& line, HostForward& forward) {
    std::istringstream words(line);
    std::string state, file, host, host_port, guest, guest_port;
    words >> state >> file >> host >> host_port >> guest >> guest_port;
    if (state != "TCP[HOST_FORWARD]" && state != "UDP[HOST_FORWARD]") return false;
    const std::string transport = state.starts_with("TCP") ? "tcp" : "udp";
    auto read = parse_host_forward(
        transport + ":" + (host == "*" ? "" : host) + ":" + host_port + "-" + guest + ":" + guest_port);
    if (!read) return false;
    forward = std::move(*read);
    return true;
}

// What a process hears that asks for the place as QEMU does; 0: it gets it.
int why_not_here(const HostForward& forward) {
    const bool tcp = forward.transport == Transport::kTcp;
    const UniqueFd socket(::socket(AF_INET, (tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(forward.host_port);
    ::inet_pton(AF_INET, forward.host.c_str(), &address.sin_addr); // empty: every address, as it is
    const int on = 1;
    if (!socket) return errno;
    if (tcp && ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0) return errno;
    if (::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) < 0) return errno;
    if (tcp && ::listen(socket.get(), 1) < 0) return errno;
    return 0;
}

} // namespace

std::vector<NetdevForward> read_usernet(std::string_view text) {
    std::vector<NetdevForward> found;
    std::istringstream lines{std::string(text)};
    std::string netdev;
    for (std::string line; std::getline(lines, line) && found.size() < kMostForwards;) {
        if (line.starts_with("Hub ")) netdev = netdev_of(line);
        HostForward forward;
        if (!netdev.empty() && read_forward(line, forward)) found.push_back({netdev, std::move(forward)});
    }
    return found;
}

Result<std::vector<NetdevForward>> forwards_of(QemuProcess& qemu, Deadline deadline) {
    TRY_ASSIGN(const std::string text, say(qemu, "info usernet", deadline));
    return read_usernet(text);
}

Result<void> add_forward(QemuProcess& qemu, const NetdevForward& wanted, Deadline deadline) {
    const std::string words = to_string(wanted.forward);
    const std::string what = "the port '" + words + "' is not forwarded to " + printable(wanted.netdev, 64);
    auto said = say(qemu, "hostfwd_add " + wanted.netdev + " " + words, deadline);
    if (!said) return std::move(said).error().context(what);
    if (said->empty()) return {};
    const int problem = why_not_here(wanted.forward);
    std::string why = printable(said->substr(0, said->find_last_not_of("\r\n") + 1), kMostWords);
    if (problem == EADDRINUSE)
        why = "somebody else has that place";
    else if (problem != 0)
        why += " (" + std::string(::strerror(problem)) + ")";
    return Error(ErrorCode::kRefused, what + ": " + why);
}

} // namespace liveupdate::supervisor::qemu
