// What I/O costs through our VMM, and what an update costs I/O; QEMU beside it in the same run.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <functional>
#include <map>

#include "tests/bench/io.hpp"
#include "tests/support/live_vm.hpp"

namespace {

using namespace liveupdate;
using namespace liveupdate::tests;

} // namespace

int main(int argc, char** argv) {
    CLI::App app{"Disk and network through our VMM, across updates, and beside QEMU"};
    unsigned updates = 20;
    std::string part = "all";
    app.add_option("part", part)->check(CLI::IsMember({"all", "slow_disk"}));
    app.add_option("--updates", updates, "of each kind")->check(CLI::Range(2u, 1000u));
    CLI11_PARSE(app, argc, argv);
    if (const std::string why = why_no_kvm(); !why.empty()) {
        std::printf("SKIPPED: %s\n", why.c_str());
        return 0;
    }
    const std::vector<std::pair<std::string, std::function<Result<void>()>>> parts = {
        {"slow_disk", [&] { return bench_slow_disk(updates); }},
    };
    for (const auto& [name, run] : parts) {
        if (part != "all" && part != name) continue;
        if (const auto done = run(); !done) {
            std::fprintf(stderr, "bench: %s: %s\n", name.c_str(), done.error().message.c_str());
            return 1;
        }
    }
    return 0;
}
