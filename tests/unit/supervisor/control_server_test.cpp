#include "supervisor/control_server.hpp"

#include <doctest/doctest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "handoff/base/deadline.hpp"
#include "handoff/base/fd.hpp"
#include "test_folder.hpp"

using namespace liveupdate;
using namespace liveupdate::supervisor;
using namespace std::chrono_literals;
using nlohmann::json;

namespace {

// Answers by command: "echo", "events", "throw", "forget", "thread", "hold" (kept until release()), "big".
class Handler : public ControlHandler {
public:
    ~Handler() override { join(); }
    void handle(json request, std::shared_ptr<ControlReply> reply) override {
        ++handled;
        const std::string command = request.at("command");
        if (command == "echo") reply->finish(std::move(request));
        if (command == "throw") reply->finish(request.at("there is no such key"));
        if (command == "fail") reply->fail(Error(ErrorCode::kBusy, "an update is under way"));
        if (command == "big") reply->finish(std::string(request.at("bytes").get<size_t>(), 'x'));
        if (command == "events") {
            for (int i = 0; i < 3; ++i)
                reply->event({{"number", i}});
            reply->finish({{"done", true}});
            reply->finish({{"done", "twice"}});
            reply->event({{"late", true}});
        }
        if (command == "flood")
            for (int i = 0; i < 2000; ++i)
                reply->event(std::string(10'000, 'x'));
        if (command == "thread")
            threads.emplace_back([reply] {
                std::this_thread::sleep_for(5ms);
                reply->event({{"from", "thread"}});
                reply->finish({});
            });
        if (command == "hold" || command == "flood") {
            reply->on_disconnect([this] { ++disconnects; });
            held.push_back(std::move(reply));
        }
    }
    void join() {
        for (auto& thread : threads)
            thread.join();
        threads.clear();
    }

    std::vector<std::shared_ptr<ControlReply>> held; // loop's thread
    std::vector<std::thread> threads;
    std::atomic<int> handled = 0;
    std::atomic<int> disconnects = 0;
};

class Client {
public:
    explicit Client(const std::string& path) {
        auto socket = fd::unix_connect(path, SOCK_STREAM);
        REQUIRE(socket.has_value());
        socket_ = std::move(*socket);
    }
    void send(const std::string& text) {
        // A server that has hung up already is found when reading.
        static_cast<void>(::send(socket_.get(), text.data(), text.size(), MSG_NOSIGNAL));
    }
    // The next line as JSON; null when the server hung up.
    json next() {
        const Deadline deadline = Deadline::after(20s);
        for (;;) {
            if (const size_t end = input_.find('\n'); end != std::string::npos) {
                const json line = json::parse(input_.substr(0, end));
                input_.erase(0, end + 1);
                return line;
            }
            pollfd poll{socket_.get(), POLLIN, 0};
            REQUIRE(::poll(&poll, 1, deadline.poll_ms()) == 1);
            char buffer[65536];
            const ssize_t n = ::recv(socket_.get(), buffer, sizeof(buffer), 0);
            if (n <= 0) return nullptr;
            input_.append(buffer, static_cast<size_t>(n));
        }
    }
    json ask(const json& request) {
        send(request.dump() + "\n");
        return next();
    }
    void finish_writing() { ::shutdown(socket_.get(), SHUT_WR); }
    void close() { socket_.reset(); }

private:
    UniqueFd socket_;
    std::string input_;
};

struct Fixture {
    TestFolder folder;
    Handler handler;
    ControlServerOptions options;
    std::unique_ptr<systemd::EventLoop> loop;
    std::unique_ptr<ControlServer> server;
    std::thread thread;

    explicit Fixture(ControlServerOptions with = {}) : options(std::move(with)) {
        options.path = folder.file("control.sock");
        auto made = systemd::EventLoop::create();
        REQUIRE(made.has_value());
        loop = std::move(*made);
        auto listening = ControlServer::create(*loop, handler, options);
        REQUIRE(listening.has_value());
        server = std::move(*listening);
        thread = std::thread([this] { static_cast<void>(loop->run().has_value()); });
    }
    ~Fixture() { stop(); }
    void stop() {
        if (!thread.joinable()) return;
        loop->stop();
        thread.join();
        handler.join();
        handler.held.clear();
        server.reset();
    }
    // Runs on the loop's thread and returns when it has run.
    template <typename Function>
    void on_loop(Function function) {
        std::atomic<bool> done = false;
        loop->post([&] {
            function();
            done = true;
        });
        while (!done)
            std::this_thread::sleep_for(1ms);
    }
    bool eventually(const std::function<bool()>& condition) {
        const Deadline deadline = Deadline::after(20s);
        while (!deadline.passed()) {
            bool holds = false;
            on_loop([&] { holds = condition(); });
            if (holds) return true;
            std::this_thread::sleep_for(2ms);
        }
        return false;
    }
};

std::string code_of(const json& answer) {
    return answer.at("error").at("code");
}

} // namespace

TEST_CASE("a request is answered, and a connection serves several, also when they come in one piece") {
    Fixture f;
    Client client(f.options.path);
    CHECK(client.ask({{"command", "echo"}, {"x", 1}}) == json{{"result", {{"command", "echo"}, {"x", 1}}}});
    client.send("{\"command\":\"echo\",\"n\":1}\n{\"command\":\"echo\",\"n\":2}\n{\"command\":");
    CHECK(client.next()["result"]["n"] == 1);
    CHECK(client.next()["result"]["n"] == 2);
    client.send("\"echo\",\"n\":3}\n");
    CHECK(client.next()["result"]["n"] == 3);
}

TEST_CASE("events come before the one end, and nothing after it") {
    Fixture f;
    Client client(f.options.path);
    client.send("{\"command\":\"events\"}\n{\"command\":\"echo\"}\n");
    for (int i = 0; i < 3; ++i)
        CHECK(client.next() == json{{"event", {{"number", i}}}});
    CHECK(client.next() == json{{"result", {{"done", true}}}});
    CHECK(client.next()["result"]["command"] == "echo");
}

TEST_CASE("a reply may come from another thread") {
    Fixture f;
    Client client(f.options.path);
    CHECK(client.ask({{"command", "thread"}})["event"]["from"] == "thread");
    CHECK(client.next().contains("result"));
}

TEST_CASE("an error crosses with its code and its words") {
    Fixture f;
    Client client(f.options.path);
    CHECK(client.ask({{"command", "fail"}}) ==
          json{{"error", {{"code", "busy"}, {"message", "an update is under way"}}}});
}

TEST_CASE("a handler that throws or forgets its reply still answers once") {
    Fixture f;
    Client client(f.options.path);
    CHECK(code_of(client.ask({{"command", "throw"}})) == "invalid");
    CHECK(code_of(client.ask({{"command", "unknown to the handler"}})) == "internal");
    CHECK(client.ask({{"command", "echo"}}).contains("result"));
}

TEST_CASE("a line that is no request is answered with an error and the end") {
    const std::string lines[] = {"rubbish", "", "[]", "{}", "{\"command\":5}", "{\"command\":\"echo\"} extra",
        std::string(40, '[') + std::string(40, ']'), "{\"command\":\"" + std::string(1, '\xff') + "\"}"};
    Fixture f;
    for (const std::string& line : lines) {
        CAPTURE(line);
        Client client(f.options.path);
        client.send(line + "\n");
        CHECK(code_of(client.next()) == "invalid");
        CHECK(client.next().is_null());
    }
    CHECK(f.handler.handled == 0);
}

TEST_CASE("a line may have the longest length and not a byte more") {
    Fixture f;
    const std::string head = "{\"command\":\"echo\",\"x\":\"";
    const std::string tail = "\"}\n";
    const std::string longest = head + std::string(kLongestRequest - head.size() - tail.size(), 'x') + tail;
    REQUIRE(longest.size() == kLongestRequest);
    Client good(f.options.path);
    good.send(longest);
    CHECK(good.next().contains("result"));
    Client bad(f.options.path);
    bad.send(head + "x" + longest.substr(head.size()));
    CHECK(code_of(bad.next()) == "invalid");
    Client endless(f.options.path);
    endless.send(std::string(kLongestRequest * 2, 'x'));
    CHECK(code_of(endless.next()) == "invalid");
}

TEST_CASE("more clients than allowed are turned away in words, until one leaves") {
    ControlServerOptions options;
    options.most_clients = 2;
    Fixture f(options);
    Client first(f.options.path);
    Client second(f.options.path);
    CHECK(first.ask({{"command", "echo"}}).contains("result"));
    CHECK(second.ask({{"command", "echo"}}).contains("result"));
    Client third(f.options.path);
    CHECK(third.next()["error"]["message"] == "2 clients are connected already; try again later");
    first.close();
    CHECK(f.eventually([&] { return f.server->clients() == 1; }));
    Client fourth(f.options.path);
    CHECK(fourth.ask({{"command", "echo"}}).contains("result"));
}

TEST_CASE("the handler hears of a client that goes away before the end") {
    Fixture f;
    Client client(f.options.path);
    client.send("{\"command\":\"hold\"}\n");
    CHECK(f.eventually([&] { return f.handler.held.size() == 1; }));
    CHECK(f.handler.disconnects == 0);
    client.close();
    CHECK(f.eventually([&] { return f.handler.disconnects == 1; }));
    f.on_loop([&] {
        f.handler.held[0]->event({{"x", 1}}); // nobody is there: nothing happens
        f.handler.held[0]->finish({});
        f.handler.held[0]->on_disconnect([&] { ++f.handler.disconnects; });
    });
    CHECK(f.eventually([&] { return f.handler.disconnects == 2; }));
}

TEST_CASE("a client that only stops writing is still answered") {
    Fixture f;
    Client client(f.options.path);
    client.send("{\"command\":\"thread\"}\n");
    client.finish_writing();
    CHECK(client.next().contains("event"));
    CHECK(client.next().contains("result"));
    CHECK(client.next().is_null());
    CHECK(f.eventually([&] { return f.server->clients() == 0; }));
}

TEST_CASE("a client that does not read is dropped and holds nobody up") {
    ControlServerOptions options;
    options.most_pending = 100'000;
    Fixture f(options);
    Client slow(f.options.path);
    slow.send("{\"command\":\"flood\"}\n");
    CHECK(f.eventually([&] { return f.handler.disconnects == 1; }));
    CHECK(f.server->clients() == 0);
    Client other(f.options.path);
    CHECK(other.ask({{"command", "echo"}}).contains("result"));
}

TEST_CASE("a large answer reaches a client that reads") {
    Fixture f;
    Client client(f.options.path);
    const json answer = client.ask({{"command", "big"}, {"bytes", 3'000'000}});
    CHECK(answer["result"].get<std::string>().size() == 3'000'000);
}

TEST_CASE("a server that ends drops its clients and its socket, and late replies do no harm") {
    Fixture f;
    Client client(f.options.path);
    client.send("{\"command\":\"hold\"}\n");
    CHECK(f.eventually([&] { return f.handler.held.size() == 1; }));
    const auto late = f.handler.held[0];
    f.stop();
    CHECK(client.next().is_null());
    CHECK_FALSE(std::filesystem::exists(f.options.path));
    late->finish({});
}

TEST_CASE("a socket somebody answers at is not taken; a left-over one is") {
    Fixture f;
    auto second = ControlServer::create(*f.loop, f.handler, f.options);
    REQUIRE_FALSE(second.has_value());
    CHECK(second.error().code == ErrorCode::kBusy);
    ControlServerOptions elsewhere = f.options;
    elsewhere.path = f.folder.file("left.sock");
    { CHECK(fd::unix_listen(elsewhere.path, SOCK_STREAM, 1).has_value()); } // closed, the file stays
    REQUIRE(std::filesystem::exists(elsewhere.path));
    f.on_loop([&] { CHECK(ControlServer::create(*f.loop, f.handler, elsewhere).has_value()); });
}

TEST_CASE("the socket is for its owner and group only") {
    Fixture f;
    struct stat status {};
    REQUIRE(::stat(f.options.path.c_str(), &status) == 0);
    CHECK((status.st_mode & 0777) == 0660);
}

TEST_CASE("a stranger is told which group may, and nothing is served" * doctest::skip(::geteuid() != 0)) {
    ControlServerOptions options;
    options.access.group = 4242;
    options.access.group_name = "ops";
    Fixture f(options);
    struct stat status {};
    REQUIRE(::stat(f.options.path.c_str(), &status) == 0);
    CHECK(status.st_gid == 4242);
    // The file's mode would stop the stranger before the server sees it.
    std::filesystem::permissions(f.options.path, std::filesystem::perms::all);
    std::filesystem::permissions(f.folder.path(), std::filesystem::perms::all);
    const pid_t child = ::fork();
    if (child == 0) {
        if (::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(2);
        auto socket = fd::unix_connect(f.options.path, SOCK_STREAM);
        if (!socket) ::_exit(3);
        static_cast<void>(::send(socket->get(), "{\"command\":\"echo\"}\n", 19, MSG_NOSIGNAL));
        char buffer[1024];
        const ssize_t n = ::recv(socket->get(), buffer, sizeof(buffer), 0);
        const std::string answer(buffer, n > 0 ? static_cast<size_t>(n) : 0);
        const bool told = answer.find("permission-denied") != std::string::npos &&
                          answer.find("member of group 'ops'") != std::string::npos;
        ::_exit(told ? 0 : 4);
    }
    int result = 0;
    REQUIRE(::waitpid(child, &result, 0) == child);
    CHECK(WIFEXITED(result));
    CHECK(WEXITSTATUS(result) == 0);
    CHECK(f.handler.handled == 0);
}
