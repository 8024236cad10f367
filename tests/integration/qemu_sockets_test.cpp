// What a QEMU guest listens at - character devices and VNC - through updates, failures and a new supervisor.
#include <poll.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "handoff/base/fd.hpp"
#include "tests/integration/qemu_places.hpp"
#include "tests/support/temporary_folder.hpp"

namespace liveupdate::tests {
namespace {

std::string status_by(QmpChannel& monitor) {
    const auto status = monitor.execute("query-status", nullptr, Deadline::after(kAnswerTime));
    return status ? status->value("status", "") : status.error().message;
}
std::string status_by(Result<QmpChannel> monitor) {
    return monitor ? status_by(*monitor) : monitor.error().message;
}

// The first bytes of whoever serves VNC there.
std::string vnc_greeting(Result<UniqueFd> socket) {
    if (!socket) return socket.error().message;
    pollfd polled{socket->get(), POLLIN, 0};
    if (::poll(&polled, 1, 5000) <= 0) return "nothing";
    char bytes[64];
    const ssize_t n = ::read(socket->get(), bytes, sizeof(bytes));
    return std::string(bytes, static_cast<size_t>(std::max<ssize_t>(n, 0)));
}
constexpr const char* kGreeting = "RFB 003.008\n";

struct Monitored {
    TemporaryFolder folder;
    std::string path = folder.at("monitor");
    uint16_t port = free_port();
    LiveVmOptions options = qemu_guest();

    Monitored() {
        options.qemu_toml +=
            "extra_args = " +
            strings({"-chardev", "socket,id=second,path=" + path + ",server=on", "-mon",
                "chardev=second,mode=control", "-chardev",
                "socket,id=third,host=127.0.0.1,port=" + std::to_string(port) + ",server=on,wait=off", "-mon",
                "chardev=third,mode=control"}) +
            "\n";
    }
    void check() const {
        CHECK(status_by(monitor_at(fd::unix_connect(path, SOCK_STREAM))) == "running");
        CHECK(status_by(monitor_at(tcp_connect(port))) == "running");
    }
};

TEST_CASE("whoever listens for a character device, one does through all updates") {
    NEEDS_QEMU();
    const OtherQemu other;
    const Monitored monitored;
    const auto vm = started(monitored.options);
    monitored.check();
    for (unsigned n = 0; n < 4; ++n) {
        update_to(*vm, n % 2 == 0 ? other.path() : kQemuPath);
        monitored.check();
    }
    check_runs(*vm);
    REQUIRE(vm->call({{"command", "stop"}}).has_value());
    CHECK(vm->await_supervisor_end() == 0);
    CHECK(!std::filesystem::exists(monitored.path));
}

TEST_CASE("an update that fails, and a dry run, leave a client of a character device where it is") {
    NEEDS_QEMU();
    const OtherQemu other;
    const Monitored monitored;
    const auto vm = started(monitored.options);
    auto client = monitor_at(fd::unix_connect(monitored.path, SOCK_STREAM));
    REQUIRE_MESSAGE(client, client.error().message);
    REQUIRE(vm->update(other.path(), {{"kind", "plan"}})->outcome == Outcome::kPlanned);
    CHECK(status_by(*client) == "running");
    const auto record = vm->update(other.path(),
        {{"fault", {{"phase", "transferring"}, {"victim", "destination"}, {"action", "kill"}}}});
    REQUIRE_MESSAGE(record, record.error().message);
    CHECK(record->outcome == Outcome::kRolledBack);
    CHECK(status_by(*client) == "running");
    client->close();
    monitored.check();
}

TEST_CASE("a supervisor that follows another one hands the sockets on") {
    NEEDS_QEMU();
    const OtherQemu other;
    const Monitored monitored;
    const auto vm = started(monitored.options);
    vm->kill_supervisor();
    monitored.check();
    REQUIRE(vm->start_supervisor().has_value());
    for (const std::string& binary : {other.path(), std::string(kQemuPath)}) {
        update_to(*vm, binary);
        monitored.check();
    }
    REQUIRE(vm->call({{"command", "stop"}}).has_value());
    CHECK(vm->await_supervisor_end() == 0);
    CHECK(!std::filesystem::exists(monitored.path));
}

TEST_CASE("a guest whose place to listen is taken does not start, and says who is in the way") {
    NEEDS_QEMU();
    const Monitored monitored;
    const auto listener = fd::unix_listen(monitored.path, SOCK_STREAM, 1);
    const auto vm = LiveVm::start(monitored.options);
    REQUIRE(!vm);
    CHECK_MESSAGE(vm.error().message.find("somebody else listens at " + monitored.path) != std::string::npos,
        vm.error().message);
    CHECK(std::filesystem::exists(monitored.path));
}

TEST_CASE("VNC follows the guest, also when the supervisor dies in between") {
    NEEDS_QEMU();
    const OtherQemu other;
    const TemporaryFolder folder;
    std::filesystem::create_directory(folder.at("screen"));
    const std::string path = folder.at("screen/vnc");
    const auto at_path = [&] { return vnc_greeting(fd::unix_connect(path, SOCK_STREAM)); };
    auto options = qemu_guest();
    options.qemu_toml += "vnc = \"unix:" + path + ",share=force-shared\"\n";
    const auto vm = started(options);
    CHECK(at_path() == kGreeting);
    REQUIRE(vm->update(other.path(), {{"kind", "plan"}})->outcome == Outcome::kPlanned);
    CHECK(at_path() == kGreeting);
    for (const std::string& binary : {other.path(), std::string(kQemuPath)}) {
        update_to(*vm, binary);
        CHECK(at_path() == kGreeting);
    }
    CHECK(!vm->update(
        other.path(), {{"fault", {{"phase", "committing"}, {"victim", "supervisor"}, {"action", "kill"}}}}));
    REQUIRE(LiveVm::eventually([&] { return !vm->supervisor_alive(); }));
    REQUIRE(vm->start_supervisor().has_value());
    CHECK(at_path() == kGreeting);

    std::filesystem::rename(folder.at("screen"), folder.at("elsewhere"));
    const auto record = vm->update(kQemuPath);
    REQUIRE_MESSAGE(record, record.error().message);
    CHECK(record->outcome == Outcome::kCompleted);
    REQUIRE(record->notes.size() == 1);
    CHECK_MESSAGE(record->notes[0].starts_with("VNC does not listen at unix:" + path), record->notes[0]);
    check_runs(*vm);
}

TEST_CASE("VNC of a guest that runs does not follow a change of its file") {
    NEEDS_QEMU();
    const TemporaryFolder folder;
    auto options = qemu_guest();
    options.qemu_toml += "vnc = \"unix:" + folder.at("first") + ",share=ignore\"\n";
    const auto vm = started(options);
    const std::string file = vm->directory() + "/config/vm.toml";
    std::string text = fd::read_file(file).value();
    text.replace(
        text.find(folder.at("first") + ",share=ignore"), folder.at("first").size() + 13, folder.at("second"));
    REQUIRE(fd::write_file_atomically(file, text).has_value());
    vm->kill_supervisor();
    REQUIRE(vm->start_supervisor().has_value());
    update_to(*vm, kQemuPath);
    CHECK(vnc_greeting(fd::unix_connect(folder.at("first"), SOCK_STREAM)) == kGreeting);
    CHECK(!std::filesystem::exists(folder.at("second")));
}

TEST_CASE("a guest that a second monitor lets run in the destination stays there") {
    NEEDS_QEMU();
    const OtherQemu other;
    const Monitored monitored;
    const auto vm = started(monitored.options);
    const pid_t source = vm->vmm_pid();
    // The source serves one client at a time: the next one is the destination's.
    const auto first = monitor_at(fd::unix_connect(monitored.path, SOCK_STREAM));
    REQUIRE_MESSAGE(first, first.error().message);
    auto socket = fd::unix_connect(monitored.path, SOCK_STREAM);
    REQUIRE(socket.has_value());
    std::string said;
    std::jthread impatient([&] {
        auto second = monitor_at(std::move(socket));
        const auto done = second ? second->execute("cont", nullptr, Deadline::after(kAnswerTime))
                                 : Result<nlohmann::json>(second.error());
        said = done ? "" : done.error().message;
    });
    SUBCASE("when the update fails") {
        const auto record = vm->update(other.path(),
            {{"fault", {{"phase", "committing"}, {"victim", "destination"}, {"action", "fail"}}}});
        REQUIRE_MESSAGE(record, record.error().message);
        CHECK(record->outcome == Outcome::kFailed);
    }
    SUBCASE("when the update fails before the commit") {
        const auto record = vm->update(other.path(),
            {{"fault", {{"phase", "transferring"}, {"victim", "destination"}, {"action", "fail"}}}});
        REQUIRE_MESSAGE(record, record.error().message);
        CHECK(record->outcome == Outcome::kFailed);
        CHECK_MESSAGE(record->reason.find("somebody else had let the destination run") != std::string::npos,
            record->reason);
    }
    SUBCASE("when the supervisor dies before the commit") {
        CHECK(!vm->update(other.path(),
            {{"fault", {{"phase", "transferring"}, {"victim", "supervisor"}, {"action", "kill"}}}}));
        REQUIRE(LiveVm::eventually([&] { return !vm->supervisor_alive(); }));
        REQUIRE(vm->start_supervisor().has_value());
    }
    impatient.join();
    CHECK_MESSAGE(said.empty(), said);
    CHECK(vm->vmm_pid() != source);
    check_runs(*vm);
}

TEST_CASE("VNC at a port of the host follows the guest, and a second guest cannot have the place") {
    NEEDS_QEMU();
    uint16_t port = free_port();
    while (port < 5900)
        port = free_port();
    auto options = qemu_guest();
    options.qemu_toml += "vnc = \"127.0.0.1:" + std::to_string(port - 5900) + "\"\n";
    const auto vm = started(options);
    CHECK(vnc_greeting(tcp_connect(port)) == kGreeting);
    update_to(*vm, kQemuPath);
    CHECK(vnc_greeting(tcp_connect(port)) == kGreeting);

    // Somebody takes the place, and another guest cannot have it.
    const auto second = LiveVm::start(options);
    REQUIRE(!second);
    CHECK_MESSAGE(second.error().message.find("VNC does not listen at 127.0.0.1, port ") != std::string::npos,
        second.error().message);
    check_runs(*vm);
}

} // namespace
} // namespace liveupdate::tests
