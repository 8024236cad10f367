// The `liveupdate` command against real VMs: what it does, what it says, and its exit codes.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <future>

#include "supervisor/exit_code.hpp"
#include "tests/integration/world.hpp"

namespace liveupdate::tests {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using supervisor::ExitCode;

std::string this_build() {
    return program("liveupdate-vmm");
}
std::string next_build() {
    return program("liveupdate-vmm-next");
}

TEST_CASE("a VM is started, looked at and stopped") {
    NEEDS_KVM();
    const World world;
    world.write_vm("web1", this_build());
    world.expect(ExitCode::kUnreachable, {"status", "web1"});
    world.expect(ExitCode::kNothingToDo, {"stop", "web1"}, "not running");
    world.expect(ExitCode::kDone, {"start", "web1"}, "running");
    world.expect(ExitCode::kNothingToDo, {"start", "web1"}, "already");
    const json status = world.status("web1");
    CHECK(status.at("state") == "running");
    CHECK(status.at("outdated") == false);
    CHECK(::kill(status.at("vmm").at("pid").get<pid_t>(), 0) == 0);
    const json list = world.read({"list", "--json"});
    REQUIRE(list.size() == 1);
    CHECK(list.at(0).at("name") == "web1");
    world.expect(ExitCode::kDone, {"list"}, "web1");
    world.expect(ExitCode::kDone, {"stop", "web1"}, "stopped");
    CHECK(LiveVm::eventually([&] { return processes_of(world.at("")).empty(); }));
    world.expect(ExitCode::kUnreachable, {"status", "web1"});
}

TEST_CASE("a VM that nobody knows, and a file that is wrong, have exit codes of their own") {
    NEEDS_KVM();
    const World world;
    world.expect(ExitCode::kUnreachable, {"status", "nobody"}, "nobody");
    world.expect(ExitCode::kUnreachable, {"now", "nobody"}, "nobody");
    world.expect(ExitCode::kUnreachable, {"start", "nobody"}, "nobody");
    world.write_vm("bad", this_build(), "probaton = \"1s\"\n");
    world.expect(ExitCode::kUsage, {"start", "bad"}, "probaton");
    world.expect(ExitCode::kUsage, {"start", "bad"}, "bad.toml:");
    world.expect(ExitCode::kUsage, {"frobnicate"});
    world.expect(ExitCode::kUsage, {"now"}, "--all");
}

TEST_CASE("an update, a dry run, a rollback and the history tell what they did") {
    NEEDS_KVM();
    const World world;
    world.write_vm("web1", this_build());
    world.expect(ExitCode::kDone, {"start", "web1"});
    world.expect(ExitCode::kRefused, {"rollback", "web1"}, "no previous binary");
    const json before = world.status("web1");
    world.expect(ExitCode::kDone, {"plan", "web1", "--binary", next_build()});
    CHECK(world.status("web1").at("vmm") == before.at("vmm"));
    world.expect(ExitCode::kNothingToDo, {"now", "web1", "--if-outdated"});
    world.expect(ExitCode::kDone, {"now", "web1", "--binary", next_build()}, "completed");
    CHECK(world.status("web1").at("vmm").at("build_id") != before.at("vmm").at("build_id"));
    world.expect(
        ExitCode::kDone, {"now", "web1", "--if-outdated"}, "completed"); // the configured one is back
    world.expect(ExitCode::kDone, {"rollback", "web1"}, "completed");
    CHECK(world.status("web1").at("vmm").at("version").get<std::string>().ends_with("+next"));

    const json history = world.read({"history", "web1", "--json"});
    std::vector<std::string> outcomes;
    for (const json& record : history)
        outcomes.push_back(
            record.at("kind").get<std::string>() + " " + record.at("outcome").get<std::string>());
    CHECK(outcomes == std::vector<std::string>{"rollback completed", "update completed", "update completed",
                          "plan planned", "rollback refused"});
    world.expect(ExitCode::kDone, {"history", "web1"}, "completed");
}

TEST_CASE("a binary that is replaced on disk makes the VM outdated until it is updated") {
    NEEDS_KVM();
    const World world;
    fs::copy_file(this_build(), world.at("vmm"));
    world.write_vm("web1", world.at("vmm"));
    world.expect(ExitCode::kDone, {"start", "web1"});
    fs::copy_file(next_build(), world.at("vmm.new"));
    fs::rename(world.at("vmm.new"), world.at("vmm")); // as a package manager does
    CHECK(world.status("web1").at("outdated") == true);
    world.expect(ExitCode::kDone, {"now", "web1", "--if-outdated"}, "completed");
    CHECK(world.status("web1").at("outdated") == false);
    world.expect(ExitCode::kNothingToDo, {"now", "--all", "--if-outdated"});
    world.expect(ExitCode::kDone, {"rollback", "web1"}, "completed"); // to a file that is no longer on disk
    CHECK(world.status("web1").at("outdated") == true);
}

TEST_CASE("a bad binary is refused and the guest runs on") {
    NEEDS_KVM();
    const World world;
    world.write_vm("web1", this_build());
    world.expect(ExitCode::kDone, {"start", "web1"});
    const json before = world.status("web1").at("vmm");
    world.expect(ExitCode::kRefused, {"now", "web1", "--binary", "/bin/true"}, "exited with status 0");
    world.expect(ExitCode::kRefused, {"now", "web1", "--binary", world.at("nothing")}, "does not exist");
    world.expect(ExitCode::kRefused, {"plan", "web1", "--binary", guest_image("clock.elf")});
    CHECK(world.status("web1").at("vmm") == before);
}

TEST_CASE("an update that takes too long can be aborted") {
    NEEDS_KVM();
    const World world;
    world.write_vm("web1", this_build());
    world.expect(ExitCode::kDone, {"start", "web1"});
    const json before = world.status("web1").at("vmm");
    world.expect(ExitCode::kNothingToDo, {"abort", "web1"}, "no update");
    fs::create_symlink(program("hostile_vmm"), world.at("hostile-hangs-in-prepare"));
    auto update = std::async(std::launch::async, [&] {
        return world.run({"now", "web1", "--binary", world.at("hostile-hangs-in-prepare")});
    });
    const bool under_way = LiveVm::eventually([&] {
        const json status = world.status("web1");
        return status.at("update").is_object() && status.at("update").value("phase", "") == "preparing";
    });
    CHECK(under_way);
    world.expect(ExitCode::kRefused, {"now", "web1"}, "being updated already");
    world.expect(ExitCode::kDone, {"abort", "web1"}, "asked update");
    const auto ended = update.get();
    CHECK_MESSAGE(ended.status == static_cast<int>(ExitCode::kRolledBack), ended.out, ended.err);
    CHECK(world.status("web1").at("vmm") == before);
    world.expect(ExitCode::kDone, {"now", "web1", "--binary", next_build()}, "completed");
}

TEST_CASE("several VMs are updated at once") {
    NEEDS_KVM();
    const World world;
    for (const char* name : {"a", "b"}) {
        world.write_vm(name, this_build());
        world.expect(ExitCode::kDone, {"start", name});
    }
    world.expect(
        ExitCode::kDone, {"now", "a", "b", "--max-parallel", "2", "--binary", next_build()}, "completed");
    for (const char* name : {"a", "b"})
        CHECK(world.status(name).at("vmm").at("version").get<std::string>().ends_with("+next"));
    world.expect(ExitCode::kDone, {"now", "--all"}, "completed");
}

TEST_CASE("a canary that fails keeps the others from being touched") {
    NEEDS_KVM();
    const World world;
    fs::copy_file(this_build(), world.at("vmm"));
    for (const char* name : {"a", "b", "c"}) {
        world.write_vm(name, world.at("vmm"));
        world.expect(ExitCode::kDone, {"start", name});
    }
    const json documents =
        world.read({"now", "a", "b", "c", "--canary", "1", "--binary", "/bin/true", "--json"});
    REQUIRE(documents.size() == 3);
    CHECK(documents.at(0).at("outcome") == "refused");
    CHECK(documents.at(1).contains("skipped"));
    CHECK(documents.at(2).contains("skipped"));
    world.expect(ExitCode::kRefused, {"now", "a", "b", "c", "--canary", "1", "--binary", "/bin/true"});
    CHECK(world.read({"history", "b", "--json"}).empty());
    CHECK(world.read({"history", "a", "--json"}).size() == 2);
}

} // namespace
} // namespace liveupdate::tests
