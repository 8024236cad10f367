#include "supervisor/cli/control_client.hpp"

#include <grp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "handoff/base/fd.hpp"
#include "supervisor/cli/start_command.hpp"
#include "supervisor/control_protocol.hpp"

namespace liveupdate::supervisor::cli {
namespace {

constexpr int kTickMs = 100;
constexpr std::chrono::seconds kEndTime(5); // for a supervisor to end once it has said that it does
constexpr std::chrono::milliseconds kPollEvery(20);

Error denied(const std::string& path, const std::string& name) {
    std::string who = "root and its owner";
    struct stat status {};
    if (::stat(path.c_str(), &status) == 0 && status.st_gid != 0) {
        const group* const entry = ::getgrgid(status.st_gid);
        who = "root and members of group '" + (entry ? entry->gr_name : std::to_string(status.st_gid)) + "'";
    }
    return {
        ErrorCode::kSystem, "permission denied: the control socket of '" + name + "' is for " + who, EACCES};
}

Error not_connected(const Paths& paths, const std::string& name, Error error) {
    const std::string path = paths.control_socket(name);
    switch (error.system_errno) {
    case EACCES:
    case EPERM:
        return denied(path, name);
    case ECONNREFUSED:
        return {ErrorCode::kNotFound, "the supervisor of '" + name + "' is gone and left its socket; run `" +
                                          start_command(paths, name) + "`"};
    case ENOENT:
        if (::access(paths.config(name).c_str(), F_OK) == 0) return not_running(paths, name);
        return {ErrorCode::kNotFound, "there is no VM '" + name + "': neither " + path + " nor " +
                                          paths.config(name) +
                                          " exists; `liveupdate list` shows those that are there"};
    default:
        return std::move(error).context("reach the supervisor of '" + name + "'");
    }
}

} // namespace

Result<ControlClient> ControlClient::connect(const Paths& paths, const std::string& name) {
    TRY(check_vm_name(name));
    auto socket = fd::unix_connect(paths.control_socket(name), SOCK_STREAM);
    if (!socket) return not_connected(paths, name, std::move(socket).error());
    return ControlClient(std::move(*socket), name);
}

Result<nlohmann::json> ControlClient::call(
    const nlohmann::json& request, Deadline deadline, const Hooks& hooks) {
    TRY(send(to_line(request)));
    for (;;) {
        TRY_ASSIGN(const std::string line, next_line(deadline, hooks));
        auto answer = nlohmann::json::parse(line, nullptr, false);
        if (answer.is_object()) {
            if (const auto error = answer.find("error"); error != answer.end())
                return error_from_json(*error);
            if (const auto result = answer.find("result"); result != answer.end())
                return nlohmann::json(std::move(*result));
            if (const auto event = answer.find("event"); event != answer.end()) {
                if (hooks.on_event) hooks.on_event(*event);
                continue;
            }
        }
        return Error(
            ErrorCode::kProtocol, "the supervisor of '" + name_ +
                                      "' answered with something that is no reply; are both of one version?");
    }
}

Result<void> ControlClient::send(const std::string& line) {
    size_t sent = 0;
    while (sent < line.size()) {
        const ssize_t n = ::send(socket_.get(), line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        // Closed already: why is in what the supervisor wrote before, which is read next.
        if (n < 0 && (errno == EPIPE || errno == ECONNRESET)) return {};
        if (n < 0) return Error::from_errno("send to the supervisor of '" + name_ + "'");
        sent += static_cast<size_t>(n);
    }
    return {};
}

Result<std::string> ControlClient::next_line(Deadline deadline, const Hooks& hooks) {
    for (;;) {
        if (const size_t end = input_.find('\n'); end != std::string::npos) {
            std::string line = input_.substr(0, end);
            input_.erase(0, end + 1);
            return line;
        }
        if (input_.size() > kLongestReply)
            return Error(
                ErrorCode::kProtocol, "the supervisor of '" + name_ + "' sent a line without an end");
        TRY(wait_for_input(deadline, hooks));
        char buffer[16384];
        const ssize_t n = ::recv(socket_.get(), buffer, sizeof(buffer), MSG_DONTWAIT);
        if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (n <= 0)
            return Error(ErrorCode::kPeerGone,
                "the supervisor of '" + name_ +
                    "' went away before it had answered; run `liveupdate status " + name_ + "`");
        input_.append(buffer, static_cast<size_t>(n));
    }
}

Result<void> ControlClient::wait_for_input(Deadline deadline, const Hooks& hooks) {
    for (;;) {
        const int left = deadline.poll_ms();
        pollfd poll{socket_.get(), POLLIN, 0};
        const int ready = ::poll(&poll, 1, left < 0 ? kTickMs : std::min(left, kTickMs));
        if (ready < 0 && errno != EINTR)
            return Error::from_errno("wait for the supervisor of '" + name_ + "'");
        if (ready > 0) return {};
        if (hooks.on_tick && hooks.on_tick() == Wait::kGiveUp)
            return Error(
                ErrorCode::kAborted, "interrupted while waiting for the supervisor of '" + name_ + "'");
        if (deadline.passed())
            return Error(ErrorCode::kTimeout,
                "the supervisor of '" + name_ + "' did not answer in time; run `liveupdate doctor`");
    }
}

void wait_until_gone(const Paths& paths, const std::string& name) {
    const Deadline deadline = Deadline::after(kEndTime);
    while (!deadline.passed() && ControlClient::connect(paths, name))
        std::this_thread::sleep_for(kPollEvery);
}

} // namespace liveupdate::supervisor::cli
