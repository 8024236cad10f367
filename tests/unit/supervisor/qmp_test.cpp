#include "supervisor/qemu/qmp.hpp"

#include <doctest/doctest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <thread>

#include "handoff/base/fd.hpp"

using namespace liveupdate;
using namespace liveupdate::supervisor::qemu;

namespace {

const std::string kGreeting =
    R"({"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}})"
    "\n";

// A QEMU that says what a test lets it say, whatever it is asked.
class Peer {
public:
    Peer() {
        auto pair = fd::socketpair(SOCK_STREAM);
        REQUIRE(pair.has_value());
        ours_ = std::move(pair->first);
        theirs_ = std::move(pair->second);
    }
    void say(const std::string& text) const {
        REQUIRE(fd::write_all(theirs_.get(), text.data(), text.size()));
    }
    std::string hear() const {
        char bytes[4096];
        const ssize_t n = ::read(theirs_.get(), bytes, sizeof(bytes));
        CHECK(n > 0);
        return {bytes, static_cast<size_t>(std::max<ssize_t>(n, 0))};
    }
    void flood() const {
        const std::string piece(1 << 20, 'x');
        while (::send(theirs_.get(), piece.data(), piece.size(), MSG_NOSIGNAL) > 0) {
        }
    }
    void hang_up() { theirs_.reset(); }
    UniqueFd take() { return std::move(ours_); }

private:
    UniqueFd ours_, theirs_;
};

Deadline soon() {
    return Deadline::after(std::chrono::seconds(5));
}
Deadline at_once() {
    return Deadline::after(std::chrono::milliseconds(20));
}

QmpChannel opened(Peer& peer) {
    const std::jthread qemu([&] {
        peer.say(kGreeting);
        peer.hear(); // qmp_capabilities
        peer.say("{\"return\": {}, \"id\": 1}\n");
    });
    auto channel = QmpChannel::open(peer.take(), soon());
    if (!channel) FAIL(channel.error().message);
    return std::move(*channel);
}

// What a command ends with when the answer is `text`.
Error error_after(const std::string& text) {
    Peer peer;
    QmpChannel channel = opened(peer);
    peer.say(text);
    const auto answer = channel.execute("query-status", nullptr, at_once());
    REQUIRE_FALSE(answer.has_value());
    return answer.error();
}

} // namespace

TEST_CASE("the greeting tells QEMU's version") {
    Peer peer;
    CHECK(opened(peer).version() == "7.2.22");
}

TEST_CASE("a command's answer is found between events, whose order and times are kept") {
    Peer peer;
    QmpChannel channel = opened(peer);
    peer.say(
        R"({"timestamp": {"seconds": 5, "microseconds": 7}, "event": "STOP"})"
        "\n"
        R"({"return": {"status": "paused"}, "id": 2})"
        "\n"
        R"({"timestamp": {"seconds": 6, "microseconds": 0}, "event": "MIGRATION", "data": {"status": "active"}})"
        "\n");
    const auto answer = channel.execute("query-status", nullptr, soon());
    REQUIRE(answer.has_value());
    CHECK((*answer)["status"] == "paused");
    REQUIRE(channel.events().size() == 2);
    CHECK(channel.events()[0].name == "STOP");
    CHECK(channel.events()[0].unix_us == 5'000'007);
    CHECK(channel.events()[1].data["status"] == "active");
}

TEST_CASE("a refusal is told in QEMU's words, made printable") {
    const Error error =
        error_after("{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\\u001b way\"}, \"id\": 2}\n");
    CHECK(error.code == ErrorCode::kRefused);
    CHECK(error.message == "query-status: no? way");
}

TEST_CASE("an answer that comes in pieces is one answer") {
    Peer peer;
    QmpChannel channel = opened(peer);
    peer.say("{\"return\":");
    CHECK(channel.take_arrived().has_value());
    peer.say(" 5, \"id\": 2}\n");
    CHECK(*channel.execute("query-status", nullptr, soon()) == 5);
}

TEST_CASE("an answer that comes after its deadline is not taken for the next one's") {
    Peer peer;
    QmpChannel channel = opened(peer);
    CHECK(channel.execute("first", nullptr, at_once()).error().code == ErrorCode::kTimeout);
    peer.say("{\"return\": \"late\", \"id\": 2}\n{\"return\": \"right\", \"id\": 3}\n");
    CHECK(*channel.execute("second", nullptr, soon()) == "right");
}

TEST_CASE("what is no QMP is refused") {
    CHECK(error_after("hello\n").code == ErrorCode::kProtocol);
    CHECK(error_after("[1, 2]\n").code == ErrorCode::kProtocol);
    CHECK(error_after("{\"answer\": 1}\n").code == ErrorCode::kProtocol);
    CHECK(error_after("{\"return\": {}}\n").code == ErrorCode::kProtocol);
    CHECK(error_after("{\"return\": {}, \"id\": 3}\n").code == ErrorCode::kProtocol);
    CHECK(error_after("{\"return\": {}, \"id\": \"2\"}\n").code == ErrorCode::kProtocol);
}

TEST_CASE("a message without end is refused before it fills our memory") {
    Peer peer;
    QmpChannel channel = opened(peer);
    const std::jthread flood([&] { peer.flood(); });
    CHECK(channel.execute("query-status", nullptr, soon()).error().code == ErrorCode::kProtocol);
    channel.close(); // which ends the flood
}

TEST_CASE("events without end are kept up to a limit, the newest of them") {
    Peer peer;
    QmpChannel channel = opened(peer);
    for (int i = 0; i < 3000; ++i) {
        peer.say("{\"event\": \"E" + std::to_string(i) + "\"}\n");
        CHECK(channel.take_arrived().has_value());
    }
    CHECK(channel.events().size() == 1024);
    CHECK(channel.events().back().name == "E2999");
}

TEST_CASE("what a QEMU said before its end is there") {
    Peer peer;
    QmpChannel channel = opened(peer);
    peer.say("{\"event\": \"RESUME\"}\n");
    peer.hang_up();
    CHECK(channel.take_arrived().error().code == ErrorCode::kPeerGone);
    REQUIRE(channel.events().size() == 1);
    CHECK(channel.events()[0].name == "RESUME");
}

TEST_CASE("somebody who does not greet is given up at the deadline, or when the work is cancelled") {
    Peer silent;
    CHECK(QmpChannel::open(silent.take(), at_once()).error().code == ErrorCode::kTimeout);
    Peer other;
    const auto cancelled = fd::eventfd(1);
    REQUIRE(cancelled.has_value());
    CHECK(QmpChannel::open(other.take(), soon(), cancelled->get()).error().code == ErrorCode::kAborted);
}

namespace {

const std::string kVersion =
    R"({"return": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "id": 1})"
    "\n";

// A channel that goes on after somebody else, who has left `rest` to be read. QEMU answers `to_capabilities`,
// in which ID stands for the one that it is asked with.
Result<QmpChannel> resumed(Peer& peer, const std::string& rest, std::string to_capabilities) {
    peer.say(rest);
    const std::jthread qemu([&] {
        const std::string asked = peer.hear();
        const bool anew = asked.starts_with("\xff\n{"); // what was not sent to its end is none of this
        CHECK(anew);
        if (!anew) return peer.hang_up();
        const auto message = nlohmann::json::parse(asked.substr(2));
        CHECK(message["execute"] == "qmp_capabilities");
        to_capabilities.replace(to_capabilities.find("ID"), 2, message["id"].dump());
        peer.say("{\"error\": {\"desc\": \"JSON parse error\"}}\n" + to_capabilities + "\n");
        if (peer.hear().find("query-version") != std::string::npos) peer.say(kVersion);
    });
    return QmpChannel::resume(peer.take(), soon());
}

const std::string kRefused =
    R"({"error": {"class": "CommandNotFound", "desc": "already complete"}, "id": ID})";

} // namespace

TEST_CASE("a connection that somebody else has left goes on, whatever he has not read") {
    const std::string event = R"({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 0}})"
                              "\n";
    for (const std::string& rest : {std::string(), kGreeting, event,
             std::string("atus\": \"running\"}, \"id\": 7}\n"), std::string("{\"return\": {}, \"id\": 1}\n"),
             std::string("{\"return\": {}, \"id\": 2}\n"), std::string("[1]\n{\"id\": 3}\n")}) {
        CAPTURE(rest);
        Peer peer;
        auto channel = resumed(peer, rest, kRefused);
        REQUIRE_MESSAGE(channel, channel.error().message);
        CHECK(channel->version() == "7.2.22");
        CHECK(channel->events().empty());
        peer.say(event + "{\"return\": 5, \"id\": 2}\n");
        CHECK(*channel->execute("query-status", nullptr, soon()) == 5);
        CHECK(channel->events().size() == 1);
    }
}

TEST_CASE("a connection goes on that nobody has brought to command mode yet") {
    Peer peer;
    const auto channel = resumed(peer, kGreeting, R"({"return": {}, "id": ID})");
    REQUIRE_MESSAGE(channel, channel.error().message);
    CHECK(channel->version() == "7.2.22");
}

TEST_CASE("a connection at whose other end nobody is, or nobody answers, does not go on") {
    Peer gone;
    gone.hang_up();
    CHECK(QmpChannel::resume(gone.take(), soon()).error().code == ErrorCode::kPeerGone);
    Peer silent;
    CHECK(QmpChannel::resume(silent.take(), at_once()).error().code == ErrorCode::kTimeout);
}
