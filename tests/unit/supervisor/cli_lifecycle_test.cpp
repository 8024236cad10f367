#include <doctest/doctest.h>
#include <sys/stat.h>

#include "cli_fixture.hpp"
#include "fake_supervisor.hpp"

using namespace liveupdate;
using namespace liveupdate::supervisor;
using nlohmann::json;

namespace {

// A shell script in the place of liveupdated.
void use_script(CliFixture& cli, const std::string& body) {
    cli.program = cli.folder.write("liveupdated", "#!/bin/sh\n" + body + "\n");
    REQUIRE(::chmod(cli.program.c_str(), 0755) == 0);
}

} // namespace

TEST_CASE("a VM that runs already is nothing to start") {
    CliFixture cli;
    cli.write_config("web1");
    FakeSupervisor web1(
        cli.paths, "web1", [](const json&, ControlReply& reply) { reply.finish(sample_status("web1")); });
    CHECK(cli.run({"start", "web1"}) == 3);
    CHECK(cli.out == "web1: nothing to do: it is running already\n");
}

TEST_CASE("a supervisor that ends while starting gives its exit code and the end of its log") {
    CliFixture cli;
    cli.write_config("web1");
    use_script(cli, "echo \"args $*\"; for i in 1 2 3 4 5 6 7 8 9 10 11; do echo line $i >&2; done; exit 4");
    CHECK(cli.run({"start", "web1"}) == 4);
    CHECK(cli.err.find("the supervisor of web1 ended with status 4") != std::string::npos);
    CHECK(cli.err.find("line 2\n") != std::string::npos);
    CHECK(cli.err.find("line 1\n") == std::string::npos);
    CHECK(cli.err.find("line 11\n") != std::string::npos);
    use_script(cli, "echo \"args $*\"; exit 77");
    CHECK(cli.run({"start", cli.paths.config("web1")}) == 6);
    CHECK(cli.err.find("line 11") == std::string::npos); // of the start before
    CHECK(cli.err.find("args --config " + cli.paths.config("web1") + "\n") != std::string::npos);
    use_script(cli, "kill -9 $$");
    CHECK(cli.run({"start", "web1"}) == 6);
    CHECK(cli.err.find("ended by signal 9") != std::string::npos);
}

TEST_CASE("start waits until the supervisor says that the guest runs") {
    CliFixture cli;
    cli.write_config("web1");
    use_script(cli, "sleep 3");
    std::unique_ptr<FakeSupervisor> web1;
    int asked = 0;
    std::thread later([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
        web1 = std::make_unique<FakeSupervisor>(cli.paths, "web1", [&](const json&, ControlReply& reply) {
            json status = sample_status("web1");
            if (++asked < 3) status["state"] = "starting";
            reply.finish(status);
        });
    });
    CHECK(cli.run({"start", "web1"}) == 0);
    later.join();
    CHECK(asked == 3);
    CHECK(cli.out == "web1: running\n");
}

TEST_CASE("start gives up waiting in words") {
    CliFixture cli;
    cli.write_config("web1");
    use_script(cli, "exec sleep 1");
    CHECK(cli.run({"start", "web1", "--timeout", "50ms"}) == 6);
    CHECK(cli.err.find("web1 is still starting; see ") != std::string::npos);
}

TEST_CASE("what cannot be started is told in words") {
    CliFixture cli;
    CHECK(cli.run({"start", "web1"}) == 8);
    CHECK(cli.err.find("there is no VM 'web1'") != std::string::npos);
    cli.folder.write("vms/bad.toml", "[machine]\nvcpu = 1\n");
    CHECK(cli.run({"start", "bad"}) == 2);
    CHECK(cli.err.find("unknown key 'vcpu' in [machine]; did you mean 'vcpus'?") != std::string::npos);
    cli.write_config("web1");
    CHECK(cli.run({"start", "web1"}) == 8);
    CHECK(cli.err.find("start /nonexistent/liveupdated: No such file or directory; install") !=
          std::string::npos);
}

TEST_CASE("stop leaves the time to the supervisor, says what it waits for and how it ended") {
    CliFixture cli;
    const auto stop = [&](const std::vector<std::string>& arguments, const std::string& guest) {
        auto web1 =
            std::make_unique<FakeSupervisor>(cli.paths, "web1", [&](const json&, ControlReply& reply) {
                if (guest != "cut") reply.event({{"asked_to_end", true}, {"timeout_ms", 30000}});
                reply.finish({{"state", "stopped"}, {"guest", guest}});
            });
        json request;
        std::thread end([&] {
            while (web1->requests().empty())
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
            request = web1->requests().at(0);
            web1.reset();
        });
        CHECK(cli.run(arguments) == 0);
        end.join();
        return request;
    };
    CHECK(stop({"stop", "web1"}, "powered-off") == json{{"command", "stop"}, {"force", false}});
    CHECK(cli.out == "web1: stopped\n");
    CHECK(cli.err == "web1: asked to power off, waiting for the guest\n");
    stop({"stop", "web1"}, "timed-out");
    CHECK(cli.out == "web1: stopped; the guest did not power off in time\n");
    CHECK(stop({"stop", "web1", "--now"}, "cut") ==
          json{{"command", "stop"}, {"force", false}, {"timeout_ms", 0}});
    CHECK(cli.out == "web1: stopped\n");
    CHECK(cli.run({"stop", "web1", "--timeout", "soon"}) == 2);
}

TEST_CASE("stop sends its options and waits for the end") {
    CliFixture cli;
    FakeSupervisor* self = nullptr;
    auto web1 = std::make_unique<FakeSupervisor>(cli.paths, "web1", [](const json&, ControlReply& reply) {
        reply.finish({{"state", "stopped"}});
    });
    self = web1.get();
    std::thread end([&] {
        while (self->requests().empty())
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        CHECK(self->requests().at(0) == json{{"command", "stop"}, {"force", true}, {"timeout_ms", 2000}});
        web1.reset();
    });
    CHECK(cli.run({"stop", "web1", "--force", "--timeout", "2s"}) == 0);
    end.join();
    CHECK(cli.out == "web1: stopped\n");
    CHECK(cli.run({"stop", "web1"}) == 8);
    cli.write_config("web1");
    CHECK(cli.run({"stop", "web1"}) == 3);
    CHECK(cli.out == "web1: nothing to do: it is not running\n");
}
