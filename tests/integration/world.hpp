// The `liveupdate` command with folders of its own, for tests of what it does and says.
#pragma once

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "supervisor/exit_code.hpp"
#include "tests/integration/checks.hpp"
#include "tests/support/command.hpp"

namespace liveupdate::tests {

// Folders of its own with VMs that the command starts; whatever runs is ended with it.
class World {
public:
    World() {
        ::prctl(PR_SET_CHILD_SUBREAPER, 1);
        char name[] = "/tmp/liveupdate-test-cli-XXXXXX";
        if (::mkdtemp(name) != nullptr) path_ = name;
        std::filesystem::create_directories(path_ + "/config");
    }
    World(const World&) = delete;
    World& operator=(const World&) = delete;
    ~World() {
        for (const pid_t pid : processes_of(path_))
            ::kill(pid, SIGKILL);
        LiveVm::eventually([&] {
            while (::waitpid(-1, nullptr, WNOHANG) > 0) {
            }
            return processes_of(path_).empty();
        });
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }

    std::string at(const std::string& name) const { return path_ + "/" + name; }
    void write_vm(const std::string& name, const std::string& binary, const std::string& more = {}) const {
        std::ofstream(at("config/" + name + ".toml"))
            << "[vmm]\nbinary = \"" << binary << "\"\n[machine]\nkernel = \"" << guest_image("clock.elf")
            << "\"\ncmdline = \"vcpus=1\"\n[[memory]]\nsize = \"64M\"\n[console]\ntype = \"none\"\n"
            << "[update]\n"
            << kPatientUpdate << more;
    }

    CommandResult run(std::vector<std::string> arguments) const {
        arguments.insert(arguments.begin(), program("liveupdate"));
        return run_command(
            arguments, {"LIVEUPDATE_RUNTIME_DIR=" + at("run"), "LIVEUPDATE_STATE_DIR=" + at("state"),
                           "LIVEUPDATE_CONFIG_DIR=" + at("config"), "LIVEUPDATE_TEST_FAULTS=1"});
    }
    // The one JSON document that the command prints.
    nlohmann::json read(const std::vector<std::string>& arguments) const {
        const auto result = run(arguments);
        auto document = nlohmann::json::parse(result.out, nullptr, false);
        CHECK_MESSAGE(!document.is_discarded(), result.out, result.err);
        return document;
    }
    nlohmann::json status(const std::string& name) const { return read({"status", name, "--json"}).at(0); }

    void expect(supervisor::ExitCode code, const std::vector<std::string>& arguments,
        const std::string& word = {}) const {
        const auto result = run(arguments);
        std::string line;
        for (const auto& a : arguments)
            line += " " + a;
        CHECK_MESSAGE(
            result.status == static_cast<int>(code), "liveupdate", line, ": ", result.out, result.err);
        CHECK_MESSAGE((result.out + result.err).find(word) != std::string::npos, "liveupdate", line, ": '",
            result.out, result.err, "' does not say '", word, "'");
    }

private:
    std::string path_;
};

} // namespace liveupdate::tests
