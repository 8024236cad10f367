// Networks that a QEMU guest listens at, and ports that are forwarded to it, through updates, failures and a
// new supervisor.
#include <arpa/inet.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <tuple>

#include "handoff/base/fd.hpp"
#include "supervisor/qemu/host_forwards.hpp"
#include "tests/integration/qemu_places.hpp"
#include "tests/support/temporary_folder.hpp"

namespace liveupdate::tests {
namespace {

// The QEMUs that a guest is moved to in turn; a newer one, too, where there is one.
std::vector<std::string> stations(const OtherQemu& other) {
    std::vector<std::string> all = {other.path(), kQemuPath};
    if (!newer_qemu().empty()) all.insert(all.end(), {newer_qemu(), kQemuPath});
    return all;
}

// An end of a network of QEMU's: a stream, in which the length stands before each frame, or datagrams.
class End {
public:
    enum class Kind { kStream, kDatagrams };
    End(UniqueFd socket, Kind kind) : socket_(std::move(socket)), kind_(kind) {}

    void send(const std::string& payload) const {
        std::string frame = std::string(12, '\xff') + "\x88\xb5" + payload; // to all, of a local protocol
        frame.resize(60);
        const uint32_t size = htonl(static_cast<uint32_t>(frame.size()));
        if (kind_ == Kind::kStream) frame.insert(0, reinterpret_cast<const char*>(&size), sizeof(size));
        static_cast<void>(::send(socket_.get(), frame.data(), frame.size(), MSG_NOSIGNAL));
    }
    // Whether the payload arrives within a moment.
    bool hears(const std::string& payload) {
        pollfd polled{socket_.get(), POLLIN, 0};
        while (heard_.find(payload) == std::string::npos) {
            char bytes[4096];
            if (::poll(&polled, 1, 50) <= 0) return false;
            const ssize_t n = ::recv(socket_.get(), bytes, sizeof(bytes), MSG_DONTWAIT);
            if (n <= 0) return false;
            heard_.append(bytes, static_cast<size_t>(n));
        }
        return true;
    }

private:
    UniqueFd socket_;
    Kind kind_;
    std::string heard_;
};

// Three networks that a hub in QEMU joins: what one of them hears the two others pass on. None is the
// guest's.
struct Networked {
    TemporaryFolder folder;
    std::string path = folder.at("frames");
    uint16_t port = free_port(), packets = free_port(SOCK_DGRAM);
    UniqueFd peer = bound(SOCK_DGRAM);
    LiveVmOptions options = qemu_guest();
    mutable unsigned sent = 0;

    explicit Networked(bool older_forms = false) {
        const std::string own = "127.0.0.1:" + std::to_string(packets);
        const std::string other = "127.0.0.1:" + std::to_string(port_of(peer));
        const auto at = [](const std::string& end, uint16_t number) {
            return "," + end + ".type=inet," + end + ".host=127.0.0.1," + end +
                   ".port=" + std::to_string(number);
        };
        std::vector<std::string> all = {"-netdev", "stream,id=a,server=on" + at("addr", port), "-netdev",
            R"({"type":"stream","id":"b","server":true,"addr":{"type":"unix","path":")" + path + R"("}})",
            "-netdev", "dgram,id=c" + at("local", packets) + at("remote", port_of(peer))};
        if (older_forms) {
            all[1] = "socket,id=a,listen=127.0.0.1:" + std::to_string(port);
            all[5] = "socket,id=c,udp=" + other + ",localaddr=" + own;
        }
        for (const std::string id : {"a", "b", "c"})
            all.insert(all.end(), {"-netdev", "hubport,id=h" + id + ",hubid=0,netdev=" + id});
        options.qemu_toml += "extra_args = " + strings(all) + "\n";
    }

    // A client of each; a packet that arrives before QEMU has accepted both is lost, so they are sent again.
    struct Clients {
        End a, b, c;
    };
    Result<Clients> connect() const {
        auto a = tcp_connect(port);
        if (!a) return std::move(a).error();
        auto b = fd::unix_connect(path, SOCK_STREAM);
        if (!b) return std::move(b).error();
        UniqueFd c = fd::dup(peer.get()).value();
        const sockaddr_in address = loopback(packets);
        if (::connect(c.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) < 0)
            return Error::from_errno("connect");
        return Clients{{std::move(*a), End::Kind::kStream}, {std::move(*b), End::Kind::kStream},
            {std::move(c), End::Kind::kDatagrams}};
    }
    void check(Clients& clients) const {
        for (const auto& [from, to, other] :
            {std::tuple{&clients.a, &clients.b, &clients.c}, std::tuple{&clients.b, &clients.a, &clients.c},
                std::tuple{&clients.c, &clients.a, &clients.b}}) {
            const std::string payload = "frame " + std::to_string(++sent) + ".";
            const auto passes = [&, from = from, to = to, other = other] {
                from->send(payload);
                return to->hears(payload) && other->hears(payload);
            };
            CHECK_MESSAGE(LiveVm::eventually(passes, kAnswerTime), payload);
        }
    }
    void check() const {
        auto clients = connect();
        REQUIRE_MESSAGE(clients, clients.error().message);
        check(*clients);
    }
};

TEST_CASE("whoever is on a network that listens finds it again after all updates") {
    NEEDS_QEMU();
    const OtherQemu other;
    bool older_forms = false;
    SUBCASE("") {}
    SUBCASE("in the older forms") {
        older_forms = true;
    }
    const Networked networked(older_forms);
    const auto vm = started(networked.options);
    networked.check();
    for (const std::string& binary : stations(other)) {
        update_to(*vm, binary);
        networked.check();
    }
    check_runs(*vm);
    REQUIRE(vm->call({{"command", "stop"}}).has_value());
    CHECK(vm->await_supervisor_end() == 0);
    CHECK(!std::filesystem::exists(networked.path));
}

TEST_CASE("whoever is on a network stays on it when an update fails, and finds it after a new supervisor") {
    NEEDS_QEMU();
    const OtherQemu other;
    const Networked networked;
    const auto vm = started(networked.options);
    {
        auto clients = networked.connect();
        REQUIRE_MESSAGE(clients, clients.error().message);
        networked.check(*clients);
        REQUIRE(vm->update(other.path(), {{"kind", "plan"}})->outcome == Outcome::kPlanned);
        networked.check(*clients);
        const auto record = vm->update(other.path(),
            {{"fault", {{"phase", "transferring"}, {"victim", "destination"}, {"action", "kill"}}}});
        REQUIRE_MESSAGE(record, record.error().message);
        CHECK(record->outcome == Outcome::kRolledBack);
        networked.check(*clients);
        vm->kill_supervisor();
        networked.check(*clients);
        REQUIRE(vm->start_supervisor().has_value());
        networked.check(*clients);
    }
    for (const std::string& binary : {other.path(), std::string(kQemuPath)}) {
        update_to(*vm, binary);
        networked.check();
    }
    CHECK(!vm->update(
        other.path(), {{"fault", {{"phase", "committing"}, {"victim", "supervisor"}, {"action", "kill"}}}}));
    REQUIRE(LiveVm::eventually([&] { return !vm->supervisor_alive(); }));
    REQUIRE(vm->start_supervisor().has_value());
    networked.check();
    check_runs(*vm);
}

TEST_CASE("a network whose place is taken is told of at the start") {
    NEEDS_QEMU();
    const Networked networked;
    const UniqueFd taken = bound(SOCK_DGRAM, networked.packets);
    const auto vm = LiveVm::start(networked.options);
    REQUIRE(!vm);
    CHECK_MESSAGE(vm.error().message.find("somebody else listens at 127.0.0.1:" +
                                          std::to_string(networked.packets)) != std::string::npos,
        vm.error().message);
}

// A guest on a user network, and a second monitor, which tells what is forwarded.
struct Forwarded {
    TemporaryFolder folder;
    std::string monitor = folder.at("monitor");
    uint16_t tcp = free_port(), udp = free_port(SOCK_DGRAM);
    LiveVmOptions options = qemu_guest();

    Forwarded() {
        options.qemu_toml += "extra_args = " +
                             strings({"-chardev", "socket,id=second,path=" + monitor + ",server=on", "-mon",
                                 "chardev=second,mode=control"}) +
                             "\n";
        options.extra_toml +=
            "[[net]]\ntype = \"user\"\nhostfwd = " + strings({tcp_rule(), udp_rule()}) + "\n";
    }
    std::string tcp_rule() const { return "tcp:127.0.0.1:" + std::to_string(tcp) + "-:22"; }
    std::string udp_rule() const { return "udp:127.0.0.1:" + std::to_string(udp) + "-10.0.2.16:53"; }
    std::string say(const std::string& line) const {
        auto channel = monitor_at(fd::unix_connect(monitor, SOCK_STREAM));
        if (!channel) return channel.error().message;
        const auto said =
            channel->execute("human-monitor-command", {{"command-line", line}}, Deadline::after(kAnswerTime));
        return said && said->is_string() ? said->get<std::string>() : "no text";
    }
    // What the running QEMU forwards, in the order of its ports' rules.
    std::vector<std::string> forwards() const {
        std::vector<std::string> all;
        for (const auto& each : supervisor::qemu::read_usernet(say("info usernet")))
            all.push_back(each.netdev + " " + to_string(each.forward));
        std::sort(all.begin(), all.end());
        return all;
    }
    std::vector<std::string> all() const {
        return {"net0 tcp:127.0.0.1:" + std::to_string(tcp) + "-10.0.2.15:22", "net0 " + udp_rule()};
    }
    void check() const {
        CHECK(forwards() == all());
        CHECK(tcp_connect(tcp).has_value());
    }
};

TEST_CASE("forwarded ports follow the guest, also when an update fails or the supervisor dies in between") {
    NEEDS_QEMU();
    const OtherQemu other;
    const Forwarded forwarded;
    const auto vm = started(forwarded.options);
    forwarded.check();
    REQUIRE(vm->update(other.path(), {{"kind", "plan"}})->outcome == Outcome::kPlanned);
    forwarded.check();
    for (const std::string& binary : stations(other)) {
        update_to(*vm, binary);
        forwarded.check();
    }
    const auto failed = vm->update(other.path(),
        {{"fault", {{"phase", "transferring"}, {"victim", "destination"}, {"action", "kill"}}}});
    REQUIRE_MESSAGE(failed, failed.error().message);
    CHECK(failed->outcome == Outcome::kRolledBack);
    forwarded.check();
    CHECK(!vm->update(
        other.path(), {{"fault", {{"phase", "committing"}, {"victim", "supervisor"}, {"action", "kill"}}}}));
    REQUIRE(LiveVm::eventually([&] { return !vm->supervisor_alive(); }));
    REQUIRE(vm->start_supervisor().has_value());
    forwarded.check();
    check_runs(*vm);
}

TEST_CASE("an update that fails in its probation has moved the ports once, and has nothing to tell of them") {
    NEEDS_QEMU();
    const OtherQemu other;
    const Forwarded forwarded;
    const auto vm = started(forwarded.options);
    const auto record = vm->update(
        other.path(), {{"fault", {{"phase", "probation"}, {"victim", "destination"}, {"action", "fail"}}}});
    REQUIRE_MESSAGE(record, record.error().message);
    CHECK(record->outcome == Outcome::kFailed);
    CHECK_MESSAGE(record->notes.empty(), record->notes[0]);
    forwarded.check();
    check_runs(*vm);
}

TEST_CASE("what somebody has QEMU forward beside the VM file follows the guest") {
    NEEDS_QEMU();
    const OtherQemu other;
    const Forwarded forwarded;
    const auto vm = started(forwarded.options);
    const std::string more = "tcp:127.0.0.1:" + std::to_string(free_port()) + "-10.0.2.15:80";
    REQUIRE(forwarded.say("hostfwd_add net0 " + more).empty());
    auto expected = forwarded.all();
    expected.push_back("net0 " + more);
    std::sort(expected.begin(), expected.end());
    for (const std::string& binary : {other.path(), std::string(kQemuPath)}) {
        update_to(*vm, binary);
        CHECK(forwarded.forwards() == expected);
    }
}

TEST_CASE("a port that is taken meanwhile is noted by an update, and forwarded by the next one") {
    NEEDS_QEMU();
    const OtherQemu other;
    const Forwarded forwarded;
    const auto vm = started(forwarded.options);
    forwarded.say("hostfwd_remove net0 tcp:127.0.0.1:" + std::to_string(forwarded.tcp));
    {
        const UniqueFd taken = bound(SOCK_STREAM, forwarded.tcp);
        REQUIRE(::listen(taken.get(), 1) == 0);
        const auto record = vm->update(other.path());
        REQUIRE_MESSAGE(record, record.error().message);
        CHECK(record->outcome == Outcome::kCompleted);
        REQUIRE(record->notes.size() == 1);
        CHECK(record->notes[0] == "the port '" + forwarded.tcp_rule() +
                                      "' is not forwarded to net0: somebody else has that place");
        CHECK(forwarded.forwards() == std::vector<std::string>{forwarded.all()[1]});

        // Nor does another guest start without its ports.
        Forwarded another;
        another.options.extra_toml = forwarded.options.extra_toml;
        const auto second = LiveVm::start(another.options);
        REQUIRE(!second);
        CHECK_MESSAGE(second.error().message.find("is not forwarded to net0: somebody else has that place") !=
                          std::string::npos,
            second.error().message);
        // A supervisor that cannot have it either leaves the guest as it is.
        vm->kill_supervisor();
        REQUIRE(vm->start_supervisor().has_value());
        CHECK(forwarded.forwards() == std::vector<std::string>{forwarded.all()[1]});
    }
    check_runs(*vm);
    update_to(*vm, kQemuPath);
    forwarded.check();
}

TEST_CASE("a new supervisor has QEMU forward what the VM file says by then, to networks that the guest has") {
    NEEDS_QEMU();
    Forwarded forwarded;
    const std::string all = forwarded.options.extra_toml, first = strings({forwarded.tcp_rule()});
    auto& toml = forwarded.options.extra_toml;
    toml.replace(toml.find("hostfwd = "), std::string::npos, "hostfwd = " + first + "\n");
    const auto vm = started(forwarded.options);
    CHECK(forwarded.forwards() == std::vector<std::string>{forwarded.all()[0]});
    const std::string file = vm->directory() + "/config/vm.toml";
    std::string text = fd::read_file(file).value();
    text.replace(text.find(toml), toml.size(),
        all + "[[net]]\ntype = \"user\"\nhostfwd = [\"tcp:127.0.0.1:" + std::to_string(free_port()) +
            "-:80\"]\n");
    REQUIRE(fd::write_file_atomically(file, text).has_value());
    vm->kill_supervisor();
    REQUIRE(vm->start_supervisor().has_value());
    forwarded.check();
    update_to(*vm, kQemuPath);
    forwarded.check();
}

TEST_CASE("networks and forwarded ports follow a guest that goes by cpr-transfer") {
    NEEDS_NEWER_QEMU();
    const Networked networked;
    Forwarded forwarded;
    auto& options = forwarded.options;
    options.vmm = newer_qemu();
    options.qemu_toml = networked.options.qemu_toml;
    options.qemu_toml.replace(options.qemu_toml.find("\"q35\""), 5, "\"q35,aux-ram-share=on\"");
    const auto vm = started(options);
    for (unsigned n = 0; n < 2; ++n) {
        const auto record = vm->update(newer_qemu(), {{"way", "cpr-transfer"}});
        REQUIRE_MESSAGE(record, record.error().message);
        REQUIRE_MESSAGE(record->outcome == Outcome::kCompleted, record->reason);
        CHECK(record->way == "cpr-transfer");
        CHECK_MESSAGE(record->notes.empty(), record->notes[0]);
        networked.check();
        CHECK(tcp_connect(forwarded.tcp).has_value());
    }
    check_runs(*vm);
}

// Whoever comes to a debugger of QEMU's may let the guest run, in whichever QEMU has accepted him; so it is
// started by hand, in the QEMU that has the guest.
TEST_CASE(
    "a debugger is refused on the command line, and started at a monitor beside a device that listens") {
    NEEDS_QEMU();
    const OtherQemu other;
    Forwarded forwarded;
    const std::string debugger = forwarded.folder.at("gdb");
    const size_t at = forwarded.options.qemu_toml.rfind("]\n");
    auto refused = forwarded.options;
    refused.qemu_toml.insert(at, ",\"-gdb\",\"chardev:second\"");
    const auto none = LiveVm::start(refused);
    REQUIRE(!none);
    CHECK_MESSAGE(none.error().message.find("say 'gdbserver chardev:ID' at a monitor") != std::string::npos,
        none.error().message);

    forwarded.options.qemu_toml.insert(at, ",\"-chardev\",\"socket,id=g,path=" + debugger + ",server=on\"");
    const auto vm = started(forwarded.options);
    for (const std::string& binary : {other.path(), std::string(kQemuPath)}) {
        update_to(*vm, binary);
        CHECK(forwarded.say("gdbserver chardev:g").starts_with("Waiting for gdb connection"));
        const auto client = fd::unix_connect(debugger, SOCK_STREAM);
        REQUIRE(client.has_value());
        REQUIRE(::send(client->get(), "+$?#3f", 6, MSG_NOSIGNAL) == 6);
        pollfd polled{client->get(), POLLIN, 0};
        CHECK(::poll(&polled, 1, 5000) == 1);
        char bytes[64] = {};
        CHECK(::read(client->get(), bytes, sizeof(bytes) - 1) > 0);
        CHECK_MESSAGE(std::string(bytes).find("$T0") != std::string::npos, bytes);
        REQUIRE(::send(client->get(), "+$D#44", 6, MSG_NOSIGNAL) == 6); // it goes, and the guest runs on
        check_runs(*vm);
    }
}

} // namespace
} // namespace liveupdate::tests
