// What a supervisor finds of its predecessor's QEMUs; shells stand for them, which have what a QEMU has: the
// arguments and the descriptors.
#include "supervisor/qemu/living_qemus.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <thread>

#include "handoff/base/fd.hpp"
#include "supervisor/child_process.hpp"
#include "supervisor/qemu/adopted.hpp"
#include "supervisor/qemu/descriptors.hpp"
#include "supervisor/qemu/own_monitor.hpp"
#include "tests/support/temporary_folder.hpp"

using namespace liveupdate;
using namespace liveupdate::supervisor;
using namespace liveupdate::supervisor::qemu;

namespace {

struct World {
    World() { REQUIRE(folder.make()); }

    ChildProcess start(
        handoff::Participant participant, const std::string& script = "read x <&9", int baton = -1) const {
        const auto shell = OpenBinary::open("/bin/sh");
        REQUIRE(shell);
        const auto life = folder.life();
        REQUIRE(life);
        std::vector<std::string> arguments{"-c", script};
        for (const std::string& each : monitor_arguments(participant))
            arguments.push_back(each);
        std::vector<ChildFd> fds{{life->get(), kLifeFd}, {waits.first.get(), 9}};
        if (baton >= 0) fds.push_back({baton, kBatonFd});
        auto child = ChildProcess::spawn(*shell, arguments, fds);
        REQUIRE(child);
        // Until it has become the shell it has another command line, and then none.
        const auto is_shell = [&] {
            const auto now = arguments_of(child->pid());
            return now && own_monitor(*now);
        };
        const auto limit = Deadline::after(std::chrono::seconds(60));
        while (!is_shell() && !limit.passed())
            std::this_thread::yield();
        return std::move(*child);
    }

    tests::TemporaryFolder place;
    QemuFolder folder{place.at("qemu")};
    std::pair<UniqueFd, UniqueFd> waits = *fd::socketpair(SOCK_STREAM); // nothing ever comes
};

} // namespace

TEST_CASE("the QEMUs of a guest are found by the lock of its life, and no others") {
    const World world, other;
    CHECK(living_qemus(world.folder).empty());
    ChildProcess first = world.start(1), second = world.start(2);
    const ChildProcess stranger = other.start(1);
    auto found = living_qemus(world.folder);
    REQUIRE(found.size() == 2);
    std::sort(found.begin(), found.end(), [](auto& a, auto& b) { return a.participant < b.participant; });
    CHECK(found[0].pid == first.pid());
    CHECK(found[1].pid == second.pid());
    CHECK(!found[0].monitor);
    CHECK(!*world.folder.nobody_lives(Deadline::after({})));
    end_all_beside(world.folder, {}, 1);
    CHECK(!second.alive());
    CHECK(first.alive());
    CHECK(living_qemus(world.folder).size() == 1);
    first.kill();
    CHECK(living_qemus(world.folder).empty());
    CHECK(*world.folder.nobody_lives(Deadline::after({})));
    CHECK(living_qemus(other.folder).size() == 1);
}

TEST_CASE("what a QEMU has forked is not taken for it") {
    const World world;
    const auto ready = world.place.at("ready");
    const ChildProcess qemu = world.start(3, "(echo >" + ready + "; read x <&9) & wait");
    const auto limit = Deadline::after(std::chrono::seconds(60));
    while (!std::filesystem::exists(ready) && !limit.passed())
        std::this_thread::yield();
    const auto found = living_qemus(world.folder);
    REQUIRE(found.size() == 1);
    CHECK(found[0].pid == qemu.pid());
    end_all_beside(world.folder, {}, 0); // the fork, too, has the lock
    CHECK(*world.folder.nobody_lives(limit));
}

TEST_CASE("whose the guest is, is told by any QEMU that has its word") {
    const World world;
    CHECK(!word_of(living_qemus(world.folder)));
    const ChildProcess without = world.start(1);
    CHECK(!word_of(living_qemus(world.folder)));
    const auto segment = handoff::Baton::create_segment(7);
    REQUIRE(segment);
    const ChildProcess with = world.start(2, "read x <&9", segment->get());
    auto baton = handoff::Baton::map(segment->get());
    REQUIRE(baton);
    REQUIRE(baton->claim(1));
    const auto word = word_of(living_qemus(world.folder));
    REQUIRE(word);
    CHECK(*word == baton->read());
}

TEST_CASE(
    "a QEMU that was kept is found though its folder was removed, and what was kept of it comes along") {
    const World world;
    const ChildProcess qemu = world.start(4);
    std::filesystem::remove_all(world.folder.path());
    REQUIRE(world.folder.make());
    CHECK(living_qemus(world.folder).empty());
    const std::string number = std::to_string(qemu.pid());
    const auto ends = fd::socketpair(SOCK_STREAM);
    handoff::NamedFds kept;
    kept["vmm-" + number] = *fd::dup(qemu.pidfd());
    kept["session-" + number] = *fd::dup(ends->first.get());
    kept["vmm-" + std::to_string(::getpid())] = *fd::pidfd_open(::getpid()); // another driver's
    kept["vmm-none"] = *fd::dup(qemu.pidfd());
    const auto found = living_qemus(world.folder, kept);
    REQUIRE(found.size() == 1);
    CHECK(found[0].participant == 4);
    CHECK(found[0].pid == qemu.pid());
    CHECK(found[0].monitor);
    CHECK(kept["session-" + number]); // it may be needed once more
    ChildProcess ended = world.start(5);
    kept["vmm-" + std::to_string(ended.pid())] = *fd::dup(ended.pidfd());
    ended.kill();
    CHECK(living_qemus(world.folder, kept).size() == 1);
    end_all_beside(world.folder, kept, 0);
    CHECK(!qemu.alive());
}
