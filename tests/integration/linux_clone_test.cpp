// Linux as a clone: it hears that it is one, and seeds its random numbers anew.
#include <algorithm>
#include <fstream>

#include "handoff/base/fd.hpp"
#include "tests/integration/checks.hpp"
#include "tests/support/linux_vm.hpp"

namespace liveupdate::tests {
namespace {

using namespace std::chrono_literals;

constexpr std::string_view kReseeded = "LU copy random: crng reseeded"; // drivers/char/random.c
constexpr auto kBootTime = 300s;                                        // on emulated hardware

size_t count(const std::string& path, std::string_view words) {
    const auto text = fd::read_file(path);
    if (!text) return 0;
    size_t found = 0;
    for (size_t at = 0; (at = text->find(words, at)) != std::string::npos; at += words.size())
        ++found;
    return found;
}

std::string lines(const std::string& path, const std::string& words) {
    std::ifstream file(path);
    std::string found;
    for (std::string line; std::getline(file, line);)
        if (line.find(words) != std::string::npos) found += "\n" + line;
    return found;
}

TEST_CASE("Linux seeds its random numbers anew in each clone, and only there") {
    if (const std::string why = why_no_linux(); !why.empty()) {
        std::printf("SKIPPED: %s\n", why.c_str());
        return;
    }
    const TemporaryFolder folder;
    const std::string console = folder.at("console"), saved = folder.at("saved");
    auto made = LiveVm::start(bare_linux("", "type = \"file\"\npath = \"" + console + "\"\n"));
    REQUIRE_MESSAGE(made, made.error().message);
    LiveVm& vm = **made;
    REQUIRE(LiveVm::eventually([&] { return count(console, "LU working") == 1; }, kBootTime));
    const auto progress = [&] { return count(console, "LU progress"); };
    const auto goes_on = [&] {
        const size_t before = progress();
        CHECK(LiveVm::eventually([&] { return progress() > before + 1; }, 60s));
    };
    REQUIRE(vm.call({{"command", "save"}, {"directory", saved}, {"kind", "file"}, {"stop", true}}));
    REQUIRE(vm.await_supervisor_end() == 0);
    size_t reseeded = 0;
    // As itself it is no copy; as a clone it is, as often as it is cloned.
    for (const bool clone : {false, true, true, false}) {
        CAPTURE(clone);
        std::vector<std::string> options = {"--mapped"};
        if (clone) options.emplace_back("--clone");
        const auto restored = vm.restore(saved, "", options);
        REQUIRE_MESSAGE(restored, restored.error().message);
        if (clone) {
            ++reseeded;
            CHECK(LiveVm::eventually([&] { return count(console, kReseeded) == reseeded; }, 60s));
        }
        goes_on();
        for (unsigned n = 0; n < 2; ++n) {
            const auto record = vm.update(turn(n));
            REQUIRE_MESSAGE(record, record.error().message);
            CHECK_MESSAGE(record->outcome == supervisor::Outcome::kCompleted, record->reason);
        }
        goes_on();
        CHECK(count(console, kReseeded) == reseeded);
        CHECK_MESSAGE(count(console, "LU error") == 0, lines(console, "LU error"));
        REQUIRE(vm.call({{"command", "stop"}, {"timeout_ms", 0}}));
        REQUIRE(vm.await_supervisor_end() == 0);
    }
}

} // namespace
} // namespace liveupdate::tests
