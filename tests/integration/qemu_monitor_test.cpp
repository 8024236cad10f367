// A QEMU's monitor, which is a socketpair: it is at no place that anybody else could come to, and goes on
// with the next supervisor wherever the former one has stopped.
#include "tests/integration/qemu_monitor.hpp"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>

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
