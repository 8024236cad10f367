// A QEMU's monitor, which is a socketpair: it is at no place that anybody else could come to, and goes on
// with the next supervisor wherever the former one has stopped.
#include "tests/integration/qemu_monitor.hpp"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>

#include "supervisor/qemu/own_monitor.hpp"
#include "supervisor/qemu/qemu_process.hpp"
#include "tests/integration/qemu_checks.hpp"

namespace liveupdate::tests {
namespace {

namespace fs = std::filesystem;
using supervisor::Outcome;

void say(const UniqueFd& end, const std::string& text) {
    REQUIRE(::send(end.get(), text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size()));
}

bool has_words(const UniqueFd& end) {
    pollfd polled{end.get(), POLLIN, 0};
    return ::poll(&polled, 1, 0) == 1;
}

void start_successor(LiveVm& vm, pid_t qemu) {
    const auto restarted = vm.start_supervisor();
    REQUIRE_MESSAGE(restarted, restarted.error().message);
    CHECK(vm.vmm_pid() == qemu);
    check_runs(vm);
}

TEST_CASE("a QEMU's monitor has no place in the file system") {
    NEEDS_QEMU();
    const auto vm = started(qemu_guest());
    for (const auto& entry : fs::recursive_directory_iterator(vm->runtime_directory()))
        CHECK_MESSAGE(!(entry.is_socket() && entry.path().parent_path().filename() == "qemu"), entry.path());
    CHECK(monitor_end(*vm, 1));
}

TEST_CASE("a supervisor goes on with a monitor wherever the former one has stopped") {
    NEEDS_QEMU();
    const OtherQemu other;
    const auto vm = started(qemu_guest());
    for (const std::string left : {R"({"execute": "query-st)",
             R"({"execute": "qom-list", "arguments": {"path": ")", R"({"execute": "query-status", "id": 4})",
             R"({"execute": "query-qmp-schema", "id": 5})", R"([{"a": [)"}) {
        CAPTURE(left);
        const pid_t qemu = vm->vmm_pid();
        vm->kill_supervisor();
        auto end = monitor_end(*vm, vm->baton().read().owner);
        REQUIRE_MESSAGE(end, end.error().message);
        say(*end, left);
        if (left.find("id") != std::string::npos) { // its answer is read by half
            REQUIRE(LiveVm::eventually([&] { return has_words(*end); }));
            char half[20];
            REQUIRE(::read(end->get(), half, sizeof(half)) == sizeof(half));
        }
        end->reset();
        start_successor(*vm, qemu);
    }
    REQUIRE(vm->update(other.path())->outcome == Outcome::kCompleted);
    check_runs(*vm);
}

TEST_CASE("what a supervisor has said is done before its successor is heard") {
    NEEDS_QEMU();
    const auto vm = started(qemu_guest());
    const pid_t qemu = vm->vmm_pid();
    vm->kill_supervisor();
    auto end = monitor_end(*vm, 1);
    REQUIRE_MESSAGE(end, end.error().message);
    say(*end, R"({"execute": "stop"})");
    end->reset();
    auto monitor = left_monitor(*vm, 1);
    REQUIRE_MESSAGE(monitor, monitor.error().message);
    const auto limit = Deadline::after(std::chrono::seconds(10));
    const auto status = monitor->execute("query-status", nullptr, limit);
    REQUIRE_MESSAGE(status, status.error().message);
    CHECK((*status)["status"] == "paused");
    monitor->close();
    start_successor(*vm, qemu); // makes it run again
}

// What a destination is that its supervisor has just started: it has the lock and the arguments, and says
// nothing.
Result<supervisor::ChildProcess> silent_qemu(
    const supervisor::qemu::QemuFolder& folder, handoff::Participant participant) {
    TRY_ASSIGN(const auto shell, supervisor::OpenBinary::open("/bin/sh"));
    TRY_ASSIGN(const UniqueFd life, folder.life());
    TRY_ASSIGN(const auto ends, fd::socketpair(SOCK_STREAM));
    std::vector<std::string> arguments{"-c", "read x <&9"};
    for (const std::string& each : supervisor::qemu::monitor_arguments(participant))
        arguments.push_back(each);
    using namespace supervisor::qemu;
    return supervisor::ChildProcess::spawn(shell, arguments,
        {{life.get(), kLifeFd}, {ends.first.get(), kMonitorFd}, {ends.second.get(), kMonitorKeptFd},
            {ends.second.get(), 9}});
}

TEST_CASE("a QEMU that has nothing of the guest need not answer, and ends") {
    NEEDS_QEMU();
    const auto vm = started(qemu_guest());
    const pid_t qemu = vm->vmm_pid();
    vm->kill_supervisor();
    const supervisor::qemu::QemuFolder folder(vm->runtime_directory() + "/qemu");
    auto silent = silent_qemu(folder, 2);
    REQUIRE_MESSAGE(silent, silent.error().message);
    REQUIRE(LiveVm::eventually([&] { return supervisor::qemu::living_qemus(folder).size() == 2; }));
    start_successor(*vm, qemu);
    CHECK(!silent->alive());
}

TEST_CASE("a program that starts a QEMU is told from one, and neither is left") {
    NEEDS_QEMU();
    const TemporaryFolder place;
    const supervisor::qemu::QemuFolder folder(place.at("qemu"));
    REQUIRE(folder.make());
    const auto shell = supervisor::OpenBinary::open("/bin/sh");
    REQUIRE(shell);
    const auto started = supervisor::qemu::QemuProcess::spawn(*shell,
        {"-c", std::string(kQemuPath) + " -nodefaults -display none -machine none \"$@\" & wait", "qemu"},
        supervisor::qemu::QemuProcess::Role::kFirst, 1, folder, {}, Deadline::after(std::chrono::seconds(60)),
        -1);
    REQUIRE(!started);
    CHECK_MESSAGE(started.error().message.find("a program that starts one") != std::string::npos,
        started.error().message);
    CHECK(*folder.nobody_lives(Deadline::after(std::chrono::seconds(60))));
}

TEST_CASE("a QEMU whose monitor hangs is neither replaced nor given up") {
    NEEDS_QEMU();
    const auto vm = started(qemu_guest());
    const pid_t qemu = vm->vmm_pid();
    vm->kill_supervisor();
    ::kill(qemu, SIGSTOP);
    const auto refused = vm->start_supervisor();
    REQUIRE(!refused);
    CHECK_MESSAGE(refused.error().message.find("lives, but cannot be adopted") != std::string::npos,
        refused.error().message);
    ::kill(qemu, SIGCONT);
    start_successor(*vm, qemu);
}

} // namespace
} // namespace liveupdate::tests
