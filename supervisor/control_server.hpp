// The control socket of one VM: a line of JSON in, lines of JSON out, on the supervisor's event loop.
//
// One request is served at a time on a connection; a client that wants two at once connects twice. Nothing a
// client does or leaves undone blocks the loop: what it does not read is kept up to a limit, then the client
// is dropped.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"
#include "supervisor/access.hpp"
#include "supervisor/control_protocol.hpp"
#include "systemd/event_loop.hpp"

namespace liveupdate::supervisor {

// The way back to the client of one request. Every function may be called from any thread, as long as the
// event loop lives, also after the client or the server is gone (then nothing happens).
class ControlReply {
public:
    virtual ~ControlReply() = default;
    // {"event": …}: any number of them before the end.
    virtual void event(nlohmann::json event) = 0;
    // The end, once: a second one is ignored. A reply that is destroyed without an end fails by itself.
    virtual void finish(nlohmann::json result) = 0;
    virtual void fail(const Error& error) = 0;
    // Called on the loop's thread, at most once, when the client goes away before the end; at once (but not
    // inside this call) when it has gone already. Replaces the function of an earlier call.
    virtual void on_disconnect(std::function<void()> function) = 0;
};

class ControlHandler {
public:
    virtual ~ControlHandler() = default;
    // On the loop's thread. `request` is an object whose "command" is a string; nothing else in it has been
    // looked at. A nlohmann::json::exception that leaves it becomes an answer of kInvalid.
    virtual void handle(nlohmann::json request, std::shared_ptr<ControlReply> reply) = 0;
};

struct ControlServerOptions {
    std::string path; // of the socket; its folder exists
    AccessPolicy access;
    size_t most_clients = 32;
    size_t longest_request = kLongestRequest;
    size_t most_pending = kLongestReply + kLongestRequest; // bytes a client may leave unread
};

class ControlServer {
public:
    // Listens at once; socket 0660, of the group when one is configured. kBusy when somebody answers at the
    // path already; a socket that nobody answers at is replaced. `loop` and `handler` outlive the server.
    // `inherited`: the listening socket of a predecessor, whose waiting clients are served; it is used if it
    // still is what lies at the path.
    static Result<std::unique_ptr<ControlServer>> create(systemd::EventLoop& loop, ControlHandler& handler,
        ControlServerOptions options, UniqueFd inherited = {});
    ControlServer(const ControlServer&) = delete;
    ControlServer& operator=(const ControlServer&) = delete;
    // Drops every client and removes the socket, if it is still ours.
    ~ControlServer();

    size_t clients() const;
    int listener() const; // borrowed

private:
    class Inner;
    explicit ControlServer(std::unique_ptr<Inner> inner);
    std::unique_ptr<Inner> inner_;
};

} // namespace liveupdate::supervisor
