// One client of the control server. Used by control_server.cpp only; on the loop's thread only.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "handoff/base/unique_fd.hpp"
#include "supervisor/control_server.hpp"

namespace liveupdate::supervisor {

class ControlConnection : public std::enable_shared_from_this<ControlConnection> {
public:
    // `forget` removes it from its server, which destroys it soon after.
    ControlConnection(UniqueFd socket, systemd::EventLoop& loop, ControlHandler& handler,
        const ControlServerOptions& options, std::function<void(ControlConnection*)> forget);
    Result<void> start();

    // Puts a line out, at once as far as the client's buffer goes. Drops a client that reads too slowly.
    void send(const std::string& line);
    // The last line of a request; the next one, if it is there, is begun.
    void end_request(const std::string& line);
    void on_disconnect(std::function<void()> function);

private:
    void on_io(uint32_t events);
    void read_input();
    void serve_lines();
    void serve(std::string_view line);
    void refuse(const Error& error); // an answer, and then the end of the connection
    void flush();
    void settle(); // waits for what it can use now, or drops the connection when nothing is left to do
    void drop();

    UniqueFd socket_;
    systemd::EventLoop& loop_;
    ControlHandler& handler_;
    const ControlServerOptions& options_;
    std::function<void(ControlConnection*)> forget_;
    systemd::Source source_;
    std::string input_;
    std::string output_;
    std::function<void()> on_disconnect_;
    bool serving_ = false; // a request has been given to the handler and not ended
    bool ending_ = false;  // no more input is wanted or to come
    bool dropped_ = false;
};

} // namespace liveupdate::supervisor
