// Says in one line what a running clock guest says of itself, read from its RAM from outside:
// "counter=N errors=N violations=N", the last of our own VMM's guests only, which have a witness page. Waits
// until the guest runs, and until its counter has gone on. A guest that was restarted counts from 0 again;
// `violations` are entries into it by two VMMs at once. With "button" the guest listens to its power button
// from then on, and powers itself off when it is pressed.
#include <fcntl.h>

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "handoff/base/fd.hpp"
#include "handoff/shared_memory.hpp"
#include "supervisor/cli/control_client.hpp"
#include "tests/guests/report.hpp"
#include "vmm/witness.hpp"

namespace {

namespace fs = std::filesystem;
using namespace liveupdate;
using ::tests::guests::read_field;
using ::tests::guests::write_field;

constexpr auto kWait = std::chrono::seconds(20);

Result<handoff::SharedMapping> map(pid_t pid, const std::string& memfd, uint64_t size) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator("/proc/" + std::to_string(pid) + "/fd", ignored)) {
        if (!fs::read_symlink(entry.path(), ignored).string().starts_with("/memfd:" + memfd)) continue;
        TRY_ASSIGN(const UniqueFd file, fd::open(entry.path(), O_RDWR));
        return handoff::SharedMapping::map(file.get(), 0, size, handoff::MapMode::kShared);
    }
    return Error(ErrorCode::kNotFound, "the VMM has no memfd " + memfd);
}

bool eventually(const auto& condition) {
    const Deadline deadline = Deadline::after(kWait);
    while (!condition()) {
        if (deadline.passed()) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return true;
}

Result<void> watch(const std::string& name, bool await_button) {
    TRY_ASSIGN(const supervisor::Paths paths, supervisor::resolve_paths());
    TRY_ASSIGN(auto client, supervisor::cli::ControlClient::connect(paths, name));
    TRY_ASSIGN(const auto status, client.call({{"command", "status"}}, Deadline::after(kWait)));
    if (!status.at("vmm").is_object()) return Error(ErrorCode::kRefused, "no VMM: " + status.dump());
    const pid_t pid = status.at("vmm").at("pid");
    TRY_ASSIGN(const auto ram, map(pid, "ram0", status.at("memory_bytes").get<uint64_t>()));
    std::optional<handoff::SharedMapping> page;
    if (status.value("driver", "") != "qemu") {
        TRY_ASSIGN(page, map(pid, "witness", 4096));
    }
    auto& report = *reinterpret_cast<::tests::guests::Report*>(ram.data() + ::tests::guests::kReportGpa);
    const auto counter = [&] { return read_field(report.vcpus[0].counter); };
    if (!eventually([&] { return read_field(report.header.started) != 0; }))
        return Error(ErrorCode::kTimeout, "the guest does not start");
    const uint64_t before = counter();
    if (!eventually([&] { return counter() > before + 1; }))
        return Error(ErrorCode::kTimeout, "the guest stands still");
    if (await_button) {
        write_field(report.header.stop, ::tests::guests::kStopByButton);
        if (!eventually([&] { return read_field(report.header.stop) == ::tests::guests::kStopNone; }))
            return Error(ErrorCode::kTimeout, "the guest does not read what it is asked for");
    }
    std::printf("counter=%llu errors=%llu", static_cast<unsigned long long>(counter()),
        static_cast<unsigned long long>(read_field(report.header.errors)));
    if (page) {
        const auto& slot = *reinterpret_cast<const vmm::WitnessSlot*>(page->data());
        std::printf(" violations=%llu", static_cast<unsigned long long>(slot.violations.load()));
    }
    std::printf("\n");
    return {};
}

} // namespace

int main(int argc, char** argv) {
    const bool await_button = argc == 3 && argv[2] == std::string_view("button");
    if (argc != 2 && !await_button) return 2;
    const auto watched = watch(argv[1], await_button);
    if (watched) return 0;
    std::fprintf(stderr, "guest_watch: %s\n", watched.error().message.c_str());
    return 1;
}
