#include "supervisor/control_connection.hpp"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <atomic>
#include <cerrno>

namespace liveupdate::supervisor {
namespace {

// Crosses from the handler's threads to the loop by posts; it locks the connection there only, so that a
// connection is always destroyed on the loop's thread.
class PostedReply : public ControlReply {
public:
    PostedReply(systemd::EventLoop& loop, std::weak_ptr<ControlConnection> connection)
        : loop_(loop), connection_(std::move(connection)) {}

    ~PostedReply() override {
        if (!ended_)
            fail(Error(ErrorCode::kInternal, "the supervisor dropped the request without an answer"));
    }

    void event(nlohmann::json event) override {
        if (ended_) return;
        on_loop([line = to_line({{"event", std::move(event)}})](ControlConnection& c) { c.send(line); });
    }
    void finish(nlohmann::json result) override { end({{"result", std::move(result)}}); }
    void fail(const Error& error) override { end({{"error", error_to_json(error)}}); }

    void on_disconnect(std::function<void()> function) override {
        loop_.post([connection = connection_, function = std::move(function)] {
            if (const auto alive = connection.lock())
                alive->on_disconnect(function);
            else
                function();
        });
    }

private:
    template <typename Function>
    void on_loop(Function function) {
        loop_.post([connection = connection_, function = std::move(function)] {
            if (const auto alive = connection.lock()) function(*alive);
        });
    }
    void end(const nlohmann::json& answer) {
        if (ended_.exchange(true)) return;
        on_loop([line = to_line(answer)](ControlConnection& c) { c.end_request(line); });
    }

    systemd::EventLoop& loop_;
    std::weak_ptr<ControlConnection> connection_;
    std::atomic<bool> ended_ = false;
};

} // namespace

ControlConnection::ControlConnection(UniqueFd socket, systemd::EventLoop& loop, ControlHandler& handler,
    const ControlServerOptions& options, std::function<void(ControlConnection*)> forget)
    : socket_(std::move(socket)), loop_(loop), handler_(handler), options_(options),
      forget_(std::move(forget)) {}

Result<void> ControlConnection::start() {
    TRY_ASSIGN(source_, loop_.add_io(socket_.get(), EPOLLIN, [weak = weak_from_this()](uint32_t events) {
        if (const auto alive = weak.lock()) alive->on_io(events);
    }));
    return {};
}

void ControlConnection::on_io(uint32_t events) {
    // EPOLLHUP: both directions are closed, so nobody would read an answer.
    if (events & (EPOLLHUP | EPOLLERR)) return drop();
    if (events & EPOLLIN) read_input();
    if (events & EPOLLOUT) flush();
    settle();
}

void ControlConnection::read_input() {
    char buffer[16384];
    // One line more than the longest is never kept.
    while (!dropped_ && input_.size() <= options_.longest_request) {
        const ssize_t n = ::recv(socket_.get(), buffer, sizeof(buffer), MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno != EAGAIN) return drop();
        if (n < 0) break;
        if (n == 0) {
            ending_ = true;
            break;
        }
        input_.append(buffer, static_cast<size_t>(n));
    }
    serve_lines();
}

void ControlConnection::serve_lines() {
    while (!serving_ && !dropped_) { // with a request served, the rest waits
        const size_t end = input_.find('\n');
        if (end >= options_.longest_request && input_.size() >= options_.longest_request) {
            return refuse(Error(ErrorCode::kInvalid,
                "a request line is longer than " + std::to_string(options_.longest_request) + " bytes"));
        }
        if (end == std::string::npos) return;
        const std::string line = input_.substr(0, end);
        input_.erase(0, end + 1);
        serve(line);
    }
}

void ControlConnection::serve(std::string_view line) {
    auto request = parse_request(line);
    if (!request) return refuse(request.error());
    serving_ = true;
    const auto reply = std::make_shared<PostedReply>(loop_, weak_from_this());
    try {
        handler_.handle(std::move(*request), reply);
    } catch (const nlohmann::json::exception& problem) {
        reply->fail(Error(ErrorCode::kInvalid, std::string("the request is malformed: ") + problem.what()));
    }
}

void ControlConnection::refuse(const Error& error) {
    ending_ = true;
    input_.clear();
    send(to_line({{"error", error_to_json(error)}}));
}

void ControlConnection::send(const std::string& line) {
    if (dropped_) return;
    output_ += line;
    flush();
    if (output_.size() > options_.most_pending) return drop();
    settle();
}

void ControlConnection::end_request(const std::string& line) {
    serving_ = false;
    on_disconnect_ = nullptr;
    send(line);
    serve_lines();
    settle();
}

void ControlConnection::on_disconnect(std::function<void()> function) {
    if (dropped_) return function();
    if (serving_) on_disconnect_ = std::move(function);
}

void ControlConnection::flush() {
    size_t sent = 0;
    while (!dropped_ && sent < output_.size()) {
        const ssize_t n =
            ::send(socket_.get(), output_.data() + sent, output_.size() - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno != EAGAIN) return drop();
        if (n < 0) break;
        sent += static_cast<size_t>(n);
    }
    output_.erase(0, sent);
}

void ControlConnection::settle() {
    if (dropped_) return;
    if (ending_ && !serving_ && output_.empty()) return drop();
    const uint32_t events = (ending_ || serving_ ? 0u : static_cast<uint32_t>(EPOLLIN)) |
                            (output_.empty() ? 0u : static_cast<uint32_t>(EPOLLOUT));
    if (!source_.set_events(events)) drop();
}

void ControlConnection::drop() {
    if (dropped_) return;
    dropped_ = true;
    const auto alive = shared_from_this();
    source_.reset();
    socket_.reset();
    forget_(this);
    if (const auto function = std::exchange(on_disconnect_, nullptr)) function();
}

} // namespace liveupdate::supervisor
