#include <doctest/doctest.h>
#include <sys/stat.h>

#include <filesystem>
#include <memory>
#include <thread>

#include "cli_fixture.hpp"
#include "fake_supervisor.hpp"
#include "handoff/save/saved_guest.pb.h"
#include "handoff/save/writer.hpp"

using namespace liveupdate;
using namespace liveupdate::supervisor;
using nlohmann::json;

namespace {

namespace fs = std::filesystem;

const json kReport = {{"path", "/srv/web1/guest.save"}, {"ram_bytes", 512u << 20},
    {"written_bytes", 125u << 20}, {"stood_still_us", 210000u}, {"duration_us", 260000u},
    {"guest", "running"}, {"notes", {"the file system is slow"}}};

// A saved guest that has a VM file and no RAM in its file.
void write_save(const std::string& directory) {
    fs::create_directories(directory);
    handoff::proto::SavedGuest guest;
    guest.set_vm("web1");
    guest.set_config("[machine]\nvcpus = 1\n");
    guest.mutable_source()->set_version("0.1.0");
    guest.mutable_manifest();
    guest.mutable_clocks();
    auto* const section = guest.add_sections()->mutable_section();
    section->set_kind("vm");
    section->set_capacity(1);
    auto writer = handoff::save::Writer::create(directory, {{"ram0", 4096, handoff::save::Place::kBeside}});
    REQUIRE(writer);
    REQUIRE((*writer)->finish(guest.SerializeAsString()));
    REQUIRE((*writer)->publish());
}

} // namespace

TEST_CASE("save asks the supervisor and tells what became of it") {
    CliFixture cli;
    json asked;
    FakeSupervisor web1(cli.paths, "web1", [&](const json& request, ControlReply& reply) {
        asked = request;
        reply.finish(kReport);
    });
    CHECK(cli.run({"save", "web1", "/srv/web1/"}) == 0);
    CHECK(asked == json{{"command", "save"}, {"directory", "/srv/web1"}, {"kind", "file"}, {"live", false},
                       {"stop", false}});
    CHECK(cli.out.find("web1: saved to /srv/web1/guest.save: 125 MiB written of 512 MiB of RAM") == 0);
    CHECK(cli.out.find("stood still for") != std::string::npos);
    CHECK(cli.err == "note: the file system is slow\n");
    CHECK(cli.run({"save", "web1", "/srv/web1", "--in-place", "--timeout", "3s", "--json"}) == 0);
    CHECK(asked["kind"] == "in-place");
    CHECK(asked["timeout_ms"] == 3000);
    CHECK(json::parse(cli.out) == kReport);
}

TEST_CASE(
    "save of a guest that is to stop waits until its supervisor has ended, so that a restore may follow") {
    CliFixture cli;
    std::unique_ptr<FakeSupervisor> web1;
    std::thread end;
    json report = kReport;
    report["guest"] = "stopped";
    web1 = std::make_unique<FakeSupervisor>(cli.paths, "web1", [&](const json&, ControlReply& reply) {
        reply.finish(report);
        if (end.joinable()) return;
        end = std::thread([&] {
            std::this_thread::sleep_for(std::chrono::milliseconds(300));
            web1.reset();
        });
    });
    CHECK(cli.run({"save", "web1", "/srv/web1", "--stop"}) == 0);
    CHECK(cli.out.find("the guest has been stopped") != std::string::npos);
    CHECK(cli.run({"stop", "web1"}) == 8); // nobody answers any more
    end.join();
}

TEST_CASE("a save that failed is told with its reason and exit code") {
    CliFixture cli;
    ErrorCode code = ErrorCode::kRefused;
    FakeSupervisor web1(cli.paths, "web1", [&](const json&, ControlReply& reply) {
        reply.fail({code, "No space left; the guest runs on"});
    });
    CHECK(cli.run({"save", "web1", "/srv"}) == 4);
    CHECK(cli.err.find("the guest runs on") != std::string::npos);
    code = ErrorCode::kSystem;
    CHECK(cli.run({"save", "web1", "/srv"}) == 6);
    code = ErrorCode::kAborted;
    CHECK(cli.run({"save", "web1", "/srv"}) == 10);
    CHECK(cli.run({"save", "gone", "/srv"}) == 8);
    CHECK(cli.run({"save", "web1", "/srv", "--file", "--in-place"}) == 2);
    CHECK(cli.run({"save", "web1", "/srv", "--timeout", "0s"}) == 2);
}

TEST_CASE("restore is refused before anything is started when there is nothing to restore") {
    CliFixture cli;
    const std::string folder = cli.folder.write("note", "");
    cli.program = "/no/such/program";
    CHECK(cli.run({"restore", fs::path(folder).parent_path().string(), "web1"}) == 8);
    CHECK(cli.err.find("no guest has been saved there") != std::string::npos);
    const std::string saved = fs::path(folder).parent_path().string() + "/saved";
    write_save(saved);
    fs::resize_file(saved + "/guest.save", 5000);
    CHECK(cli.run({"restore", saved, "web1"}) == 4);
    CHECK(cli.err.find("cut") != std::string::npos);
    CHECK_FALSE(fs::exists(cli.paths.config("web1")));
    FakeSupervisor web1(
        cli.paths, "web1", [](const json&, ControlReply& reply) { reply.finish(sample_status("web1")); });
    CHECK(cli.run({"restore", saved, "web1"}) == 4);
    CHECK(cli.err.find("runs already") != std::string::npos);
}

TEST_CASE("restore gives a VM without a file the saved one, and starts its supervisor with the folder") {
    CliFixture cli;
    cli.program = cli.folder.write("liveupdated", "#!/bin/sh\necho \"args $*\"; exit 4\n");
    REQUIRE(::chmod(cli.program.c_str(), 0755) == 0);
    const std::string saved = fs::path(cli.program).parent_path().string() + "/saved";
    write_save(saved);
    CHECK(cli.run({"restore", saved, "web2"}) == 4);
    CHECK(cli.err.find("args --config " + cli.paths.config("web2") + " --restore " + saved + "\n") !=
          std::string::npos);
    CHECK(fs::file_size(cli.paths.config("web2")) == 20);
}
