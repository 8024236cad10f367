#include <doctest/doctest.h>
#include <sys/socket.h>

#include "cli_fixture.hpp"
#include "fake_supervisor.hpp"
#include "handoff/base/fd.hpp"
#include "liveupdate_version.hpp"
#include "sample_record.hpp"
#include "supervisor/cli/record_view.hpp"
#include "supervisor/cli/status_view.hpp"
#include "supervisor/history.hpp"

using namespace liveupdate;
using namespace liveupdate::supervisor;
using nlohmann::json;

namespace {

FakeSupervisor::Answer with_status(json status) {
    return [status = std::move(status)](const json& request, ControlReply& reply) {
        if (request["command"] == "status") return reply.finish(status);
        if (request["command"] == "history") return reply.finish({{"records", {to_json(sample_record())}}});
        reply.fail(Error(ErrorCode::kInvalid, "unknown command"));
    };
}

} // namespace

TEST_CASE("status tells what runs, what is on disk, the last update and what to do next") {
    CliFixture cli;
    FakeSupervisor web1(cli.paths, "web1", with_status(sample_status("web1")));
    CHECK(cli.run({"status", "web1"}) == 0);
    CHECK(cli.out.find("* web1 - running\n") == 0);
    CHECK(cli.out.find("     Running: 1.0 (build 00112233), since ") != std::string::npos);
    CHECK(cli.out.find("     On disk: /opt/vmm (build ffeeddcc), what runs is outdated\n") !=
          std::string::npos);
    CHECK(cli.out.find(
              ": updated 1.0 -> 1.1, blackout 0.41 ms (predicted 0.45 ms, QEMU's own figure 2 ms)\n") !=
          std::string::npos);
    CHECK(cli.out.find("     Machine: 2 vCPUs, 512 MiB\n") != std::string::npos);
    CHECK(cli.out.find("        Next: run `liveupdate now web1`\n") != std::string::npos);
    CHECK(cli.out.find('\033') == std::string::npos);
}

TEST_CASE("status has colours only where they are on") {
    CliFixture cli;
    FakeSupervisor web1(cli.paths, "web1", with_status(sample_status("web1")));
    cli.colours = cli::Colours::kOn;
    CHECK(cli.run({"status", "web1"}) == 0);
    CHECK(cli.out.find("\033[32mrunning\033[0m") != std::string::npos);
}

TEST_CASE("the next step fits the state") {
    const CliFixture cli;
    json status = sample_status("web1");
    CHECK(cli::next_step(status, cli.paths) == "run `liveupdate now web1`");
    status["outdated"] = false;
    CHECK(cli::next_step(status, cli.paths) == "");
    status["on_disk"]["error"] = "/opt/vmm is not an ELF file";
    CHECK(cli::next_step(status, cli.paths).find("install a VMM") == 0);
    status["state"] = "updating";
    CHECK(cli::next_step(status, cli.paths) == "wait, or run `liveupdate abort web1`");
    status["state"] = "lost";
    CHECK(
        cli::next_step(status, cli.paths) ==
        "run `liveupdate history web1` for the reason, `liveupdate stop web1`, then `liveupdate start web1`");
    status["state"] = "stopped";
    CHECK(cli::next_step(status, cli.paths) == "run `liveupdate start web1`");
}

TEST_CASE("a stopped VM is told with its binary, exit code 8 only when it was named") {
    CliFixture cli;
    cli.write_config("web1");
    CHECK(cli.run({"status", "web1"}) == 8);
    CHECK(cli.out.find("* web1 - stopped\n") == 0);
    CHECK(cli.out.find("/proc/self/exe (build ") != std::string::npos);
    CHECK(cli.out.find("Next: run `liveupdate start web1`\n") != std::string::npos);
    CHECK(cli.run({"status"}) == 0);
    CHECK(cli.run({"status", "web2"}) == 8);
    CHECK(cli.err.find("liveupdate: there is no VM 'web2'") == 0);
}

TEST_CASE("a supervisor that is gone leaves a VM unreachable, with what to do") {
    CliFixture cli;
    REQUIRE(make_directories(cli.paths.vm_runtime_dir("web1")).has_value());
    { CHECK(fd::unix_listen(cli.paths.control_socket("web1"), SOCK_STREAM, 1).has_value()); }
    CHECK(cli.run({"status", "web1"}) == 8);
    CHECK(cli.out.find("* web1 - unreachable\n") == 0);
    CHECK(cli.out.find("the supervisor of 'web1' is gone and left its socket") != std::string::npos);
}

TEST_CASE("a lost guest is exit code 7, whether it was named or not") {
    CliFixture cli;
    json status = sample_status("web1");
    status["state"] = "lost";
    FakeSupervisor web1(cli.paths, "web1", with_status(status));
    CHECK(cli.run({"status"}) == 7);
    CHECK(cli.run({"status", "web1"}) == 7);
}

TEST_CASE("a status with wrong types and control characters is shown without harm") {
    CliFixture cli;
    FakeSupervisor web1(cli.paths, "web1",
        with_status({{"name", "we\033[2Jb1"}, {"state", 5}, {"vmm", "x"}, {"last_update", {{"id", 1}}},
            {"vcpus", -1}, {"console", nullptr}}));
    CHECK(cli.run({"status", "web1"}) == 8);
    CHECK(cli.out.find('\033') == std::string::npos);
    CHECK(cli.run({"list"}) == 0);
    FakeSupervisor web2(cli.paths, "web2", with_status(json::array()));
    CHECK(cli.run({"status", "web2"}) == 1);
}

TEST_CASE("list has a line for each VM, the columns under their titles") {
    CliFixture cli;
    cli.write_config("db");
    FakeSupervisor web1(cli.paths, "web1", with_status(sample_status("web1")));
    CHECK(cli.run({"list"}) == 0);
    CHECK(cli.out == "NAME  STATE    VERSION  BUILD     ON DISK  VCPUS  MEMORY   LAST UPDATE\n"
                     "db    stopped  -        -         -        -      -        -\n"
                     "web1  running  1.0      00112233  differs  2      512 MiB  completed, 0.41 ms\n");
    CHECK(cli.run({"list", "--json"}) == 0);
    const json all = json::parse(cli.out);
    REQUIRE(all.size() == 2);
    CHECK(all[0]["state"] == "stopped");
    CHECK(all[1] == json::parse(sample_status("web1").dump()));
}

TEST_CASE("an empty host has an empty list") {
    CliFixture cli;
    CHECK(cli.run({"list"}) == 0);
    CHECK(cli.out.find("no VM") == 0);
    CHECK(cli.run({"list", "--json"}) == 0);
    CHECK(json::parse(cli.out).empty());
}

TEST_CASE("history comes from the supervisor, or from the file when there is none") {
    CliFixture cli;
    {
        FakeSupervisor web1(cli.paths, "web1", with_status(sample_status("web1")));
        CHECK(cli.run({"history", "web1", "-n", "5"}) == 0);
        CHECK(cli.out.find("u-20261122-101530-4f2a  updated 1.0 -> 1.1") != std::string::npos);
        CHECK(web1.requests().at(0) == json{{"command", "history"}, {"limit", 5}});
    }
    cli.write_config("web1");
    CHECK(cli.run({"history", "web1"}) == 8);
    REQUIRE(make_directories(cli.paths.vm_state_dir("web1")).has_value());
    {
        auto history = History::open(cli.paths.history("web1"));
        REQUIRE(history.has_value());
        for (const char* id : {"first", "second", "third"}) {
            UpdateRecord record = sample_record();
            record.id = id;
            REQUIRE(history->append(record).has_value());
        }
    }
    CHECK(cli.run({"history", "web1", "--json", "-n", "2"}) == 0);
    const json records = json::parse(cli.out);
    REQUIRE(records.size() == 2);
    CHECK(records[0]["id"] == "third");
    CHECK(records[1]["id"] == "second");
}

TEST_CASE("version and help answer on standard output") {
    CliFixture cli;
    CHECK(cli.run({"version"}) == 0);
    CHECK(cli.out == "liveupdate " + std::string(kVersion) + "\n");
    CHECK(cli.run({"--version"}) == 0);
    CHECK(cli.run({"version", "--json"}) == 0);
    CHECK(json::parse(cli.out)["version"] == kVersion);
    CHECK(cli.run({"--help"}) == 0);
    CHECK(cli.out.find("Exit codes: 0 done") != std::string::npos);
    CHECK(cli.run({"now", "--help"}) == 0);
    CHECK(cli.out.find("--canary") != std::string::npos);
}

TEST_CASE("doctor tells each check with a verdict, and a wrong file and a stale socket are failures") {
    CliFixture cli;
    cli.folder.write("vms/bad.toml", "[machine]\nvcpu = 1\n");
    REQUIRE(make_directories(cli.paths.vm_runtime_dir("web1")).has_value());
    { CHECK(fd::unix_listen(cli.paths.control_socket("web1"), SOCK_STREAM, 1).has_value()); }
    CHECK(cli.run({"doctor", "--json"}) == 6);
    const json report = json::parse(cli.out);
    const auto verdict = [&](const std::string& name) {
        for (const auto& check : report["checks"])
            if (check["name"] == name)
                return check["verdict"].get<std::string>() + ": " + check["found"].get<std::string>();
        return std::string("missing");
    };
    CHECK(verdict("memfd") == "ok: can be made and sealed");
    CHECK(verdict("runtime folder").find("ok") == 0);
    CHECK(verdict("file of bad").find("fail: ") == 0);
    CHECK(verdict("file of bad").find(cli.paths.config("bad") + ":2:1: unknown key 'vcpu'") !=
          std::string::npos);
    CHECK(verdict("supervisor of web1").find("fail: the supervisor of 'web1' is gone") == 0);
    CHECK(cli.run({"doctor"}) == 6);
}

TEST_CASE("times are told for people") {
    CHECK(cli::ago(100, 100) == "just now");
    CHECK(cli::ago(200, 100) == "just now");
    CHECK(cli::ago(55, 100) == "45s ago");
    CHECK(cli::ago(0, 7380) == "2h 3min ago");
    CHECK(cli::ago(INT64_MIN, 100) == "long ago");
    CHECK_FALSE(cli::local_time(INT64_MAX).empty());
}

TEST_CASE("two builds of one version are told apart by their build-ids") {
    UpdateRecord record = sample_record();
    record.to.version = record.from.version;
    CHECK(cli::describe(record) == "updated 1.0 (build 00112233) -> 1.0 (build ffeeddcc), blackout 0.41 ms "
                                   "(predicted 0.45 ms, QEMU's own figure 2 ms)");
}

TEST_CASE("what an operator should know beside is told behind the outcome") {
    UpdateRecord record = sample_record();
    const std::string without = cli::describe(record);
    record.notes = {"the machine is\nold", "the disk is full"};
    CHECK(cli::describe(record) == without + "; note: the machine is old; note: the disk is full");
}
