#include <doctest/doctest.h>

#include <algorithm>
#include <csignal>
#include <thread>

#include "cli_fixture.hpp"
#include "fake_supervisor.hpp"
#include "sample_record.hpp"

using namespace liveupdate;
using namespace liveupdate::supervisor;
using nlohmann::json;

namespace {

FakeSupervisor::Answer with_outcome(Outcome outcome, const std::string& reason = "") {
    return [=](const json& request, ControlReply& reply) {
        if (request["command"] != "update") return reply.finish({});
        UpdateRecord record = sample_record();
        record.kind = *parse_update_kind(request["kind"].get<std::string>());
        record.outcome = outcome;
        record.reason = reason;
        reply.event(
            {{"phase", "preparing"}, {"update", record.id}, {"elapsed_us", 10}, {"detail", "512 MiB"}});
        reply.event({{"phase", "committing"}, {"update", record.id}, {"elapsed_us", 20}});
        reply.finish(to_json(record));
    };
}

} // namespace

TEST_CASE("an update shows its phases and one closing line") {
    CliFixture cli;
    FakeSupervisor web1(cli.paths, "web1", with_outcome(Outcome::kCompleted));
    CHECK(cli.run({"now", "web1"}) == 0);
    CHECK(cli.out ==
          "web1: preparing: 512 MiB\nweb1: committing\n"
          "web1: updated 1.0 -> 1.1, blackout 0.41 ms (predicted 0.45 ms, QEMU's own figure 2 ms)\n");
    CHECK(cli.err == "");
    const json request = web1.requests().at(0);
    CHECK(request == json{{"command", "update"}, {"kind", "update"}, {"if_outdated", false}});
}

TEST_CASE("the options cross to the supervisor") {
    CliFixture cli;
    FakeSupervisor web1(cli.paths, "web1", with_outcome(Outcome::kPlanned));
    CHECK(cli.run({"now", "web1", "--binary", "/opt/../opt/vmm", "--if-outdated", "--dry-run", "--timeout",
              "1.5s"}) == 0);
    CHECK(web1.requests().at(0) == json{{"command", "update"}, {"kind", "plan"}, {"if_outdated", true},
                                       {"binary", "/opt/vmm"}, {"timeout_ms", 1500}});
    CHECK(cli.run({"plan", "web1"}) == 0);
    CHECK(web1.requests().at(1)["kind"] == "plan");
    CHECK(cli.out.find("would update 1.0 -> 1.1, blackout predicted 0.45 ms") != std::string::npos);
    CHECK(cli.run({"rollback", "web1"}) == 0);
    CHECK(web1.requests().at(2)["kind"] == "rollback");
}

TEST_CASE("each outcome has its exit code and its sentence") {
    struct Expected {
        Outcome outcome;
        int code;
        const char* sentence;
    };
    const Expected all[] = {
        {Outcome::kNothingToDo, 3, "web1: nothing to do: because\n"},
        {Outcome::kRefused, 4, "web1: refused: because; the guest was not touched\n"},
        {Outcome::kAbandoned, 5, "web1: abandoned: because; the guest runs on in 1.0 (build 00112233)\n"},
        {Outcome::kRolledBack, 5,
            "web1: rolled back: because; the guest runs on in 1.0 (build 00112233), blackout "},
        {Outcome::kFailed, 6, "web1: failed: because\n"},
        {Outcome::kLost, 7, "web1: the guest is lost: because\n"},
    };
    for (const Expected& expected : all) {
        CAPTURE(to_string(expected.outcome));
        CliFixture cli;
        FakeSupervisor web1(cli.paths, "web1", with_outcome(expected.outcome, "because"));
        CHECK(cli.run({"now", "web1"}) == expected.code);
        CHECK(cli.out.find(expected.sentence) != std::string::npos);
    }
}

TEST_CASE("with --json there is one document, an array of records, and nothing else") {
    CliFixture cli;
    FakeSupervisor good(cli.paths, "a", with_outcome(Outcome::kCompleted));
    FakeSupervisor bad(cli.paths, "b", with_outcome(Outcome::kRefused, "no"));
    FakeSupervisor unused(cli.paths, "c", with_outcome(Outcome::kCompleted));
    CHECK(cli.run({"now", "--all", "--json", "--max-parallel", "1"}) == 4);
    const json all = json::parse(cli.out);
    REQUIRE(all.size() == 3);
    CHECK(all[0]["vm"] == "a");
    CHECK(record_from_json(all[0]).value().outcome == Outcome::kCompleted);
    CHECK(all[1]["outcome"] == "refused");
    CHECK(all[2]["skipped"] == "not begun, because another VM failed");
    CHECK(unused.requests().empty());
}

TEST_CASE("several VMs give the worst exit code, and --keep-going updates the rest") {
    CliFixture cli;
    FakeSupervisor a(cli.paths, "a", with_outcome(Outcome::kLost, "x"));
    FakeSupervisor b(cli.paths, "b", with_outcome(Outcome::kCompleted));
    CHECK(cli.run({"now", "a", "b", "a", "--max-parallel", "1", "--keep-going"}) == 7);
    CHECK(a.requests().size() == 1);
    CHECK(b.requests().size() == 1);
    CHECK(cli.out.find("b: updated") != std::string::npos);
}

TEST_CASE("a failed canary leaves the others alone") {
    CliFixture cli;
    FakeSupervisor a(cli.paths, "a", with_outcome(Outcome::kRolledBack, "x"));
    FakeSupervisor b(cli.paths, "b", with_outcome(Outcome::kCompleted));
    CHECK(cli.run({"now", "a", "b", "--canary", "1", "--keep-going"}) == 5);
    CHECK(b.requests().empty());
    CHECK(cli.out.find("b: not begun, because another VM failed") != std::string::npos);
}

TEST_CASE("an update that cannot begin tells the supervisor's words") {
    CliFixture cli;
    FakeSupervisor web1(cli.paths, "web1", [](const json&, ControlReply& reply) {
        reply.fail(Error(ErrorCode::kBusy, "update u-1 is under way"));
    });
    CHECK(cli.run({"now", "web1"}) == 4);
    CHECK(cli.out == "web1: update u-1 is under way\n");
}

TEST_CASE("an answer that is no record is an internal error, not a success") {
    CliFixture cli;
    FakeSupervisor web1(cli.paths, "web1", [](const json&, ControlReply& reply) {
        reply.finish({{"outcome", "fine"}});
    });
    CHECK(cli.run({"now", "web1"}) == 1);
    CHECK(cli.out.find("not an update record") != std::string::npos);
}

TEST_CASE("a supervisor that dies in the update is told") {
    CliFixture cli;
    auto web1 = std::make_unique<FakeSupervisor>(cli.paths, "web1", [&](const json&, ControlReply&) {});
    std::unique_ptr<FakeSupervisor> holding;
    FakeSupervisor* self = nullptr;
    holding = std::make_unique<FakeSupervisor>(
        cli.paths, "web2", [&self](const json&, ControlReply&) { self->keep(self->current()); });
    self = holding.get();
    std::thread killer([&] {
        while (self->requests().empty())
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        holding.reset();
    });
    CHECK(cli.run({"now", "web2"}) == 8);
    killer.join();
    CHECK(cli.out.find("went away before it had answered") != std::string::npos);
    // And one that drops the request without a word.
    CHECK(cli.run({"now", "web1"}) == 1);
}

TEST_CASE("an interrupt asks for an abort, and the exit code says so") {
    CliFixture cli;
    FakeSupervisor* self = nullptr;
    FakeSupervisor web1(cli.paths, "web1", [&self](const json& request, ControlReply& reply) {
        if (request["command"] == "update") {
            reply.event({{"phase", "preparing"}});
            self->keep(self->current());
            ::kill(::getpid(), SIGINT);
            return;
        }
        reply.finish({{"update", "u-1"}});
        UpdateRecord record = sample_record();
        record.outcome = Outcome::kAbandoned;
        record.reason = "aborted by a user";
        self->finish_kept(to_json(record));
    });
    self = &web1;
    FakeSupervisor web2(cli.paths, "web2", with_outcome(Outcome::kCompleted));
    CHECK(cli.run({"now", "web1", "web2", "--max-parallel", "1"}) == 10);
    CHECK(web1.requests().at(1)["command"] == "abort");
    CHECK(web2.requests().empty());
    CHECK(cli.out.find("web2: not begun: interrupted") != std::string::npos);
}

TEST_CASE("abort tells what it stopped, or that there is nothing to stop") {
    CliFixture cli;
    json answer = {{"update", "u-1"}};
    FakeSupervisor web1(cli.paths, "web1", [&](const json&, ControlReply& reply) { reply.finish(answer); });
    CHECK(cli.run({"abort", "web1"}) == 0);
    CHECK(cli.out.find("asked update u-1 to stop") != std::string::npos);
    answer = {{"update", nullptr}};
    CHECK(cli.run({"abort", "web1"}) == 3);
}

TEST_CASE("wrong usage is one sentence and exit code 2") {
    CliFixture cli;
    const std::vector<std::vector<std::string>> all = {{"now"}, {"now", "--all", "web1"}, {"now", "Web1"},
        {"now", "../x"}, {"now", "x", "--timeout", "soon"}, {"now", "x", "--timeout", "0s"},
        {"now", "x", "--max-parallel", "0"}, {"now", "x", "--max-parallel", "many"}, {"now", "--nonsense"},
        {"nonsense"}, {}, {"rollback", "x", "--binary", "/y"}, {"abort"}, {"abort", "a", "b"}};
    for (const auto& arguments : all) {
        CAPTURE(arguments.size());
        CHECK(cli.run(arguments) == 2);
        CHECK(cli.out == "");
        CHECK(cli.err.find("liveupdate: ") == 0);
        CHECK(std::count(cli.err.begin(), cli.err.end(), '\n') == 1);
    }
}

TEST_CASE("no VM at all is nothing to do") {
    CliFixture cli;
    CHECK(cli.run({"now", "--all"}) == 3);
    CHECK(cli.run({"now", "--all", "--json"}) == 3);
    CHECK(json::parse(cli.out).empty());
}

TEST_CASE("a VM that does not exist, is stopped, or left its socket is told apart, exit code 8") {
    CliFixture cli;
    CHECK(cli.run({"now", "web1"}) == 8);
    CHECK(cli.out.find("there is no VM 'web1'") != std::string::npos);
    cli.write_config("web1");
    CHECK(cli.run({"now", "web1"}) == 8);
    CHECK(cli.out.find("'web1' is not running; run `liveupdate start web1`") != std::string::npos);
}
