// The client's end of a VM's control socket.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "handoff/base/deadline.hpp"
#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"
#include "supervisor/paths.hpp"

namespace liveupdate::supervisor::cli {

class ControlClient {
public:
    enum class Wait { kGoOn, kGiveUp };
    struct Hooks {
        std::function<void(const nlohmann::json& event)> on_event;
        std::function<Wait()> on_tick; // about ten times a second while nothing comes
    };

    // kNotFound in words, with what to do, when there is no such VM or no supervisor answers; a system error
    // with EACCES, whose words name who may, when the socket is not for this user.
    static Result<ControlClient> connect(const Paths& paths, const std::string& name);

    // One request and its answer: the result, or the supervisor's error. One at a time. kTimeout, kPeerGone
    // and kProtocol tell what happened on the way; kAborted that on_tick gave up. After any of these four the
    // client is of no more use.
    Result<nlohmann::json> call(const nlohmann::json& request, Deadline deadline, const Hooks& hooks = {});

private:
    ControlClient(UniqueFd socket, std::string name) : socket_(std::move(socket)), name_(std::move(name)) {}
    Result<void> send(const std::string& line);
    Result<std::string> next_line(Deadline deadline, const Hooks& hooks);
    Result<void> wait_for_input(Deadline deadline, const Hooks& hooks);

    UniqueFd socket_;
    std::string name_;
    std::string input_;
};

// A supervisor whose guest has ended answers first and ends then: a `start` or a `restore` right after must
// not find it. Waits a few seconds at most.
void wait_until_gone(const Paths& paths, const std::string& name);

} // namespace liveupdate::supervisor::cli
