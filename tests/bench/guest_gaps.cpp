// Shows the updates of one VM that runs the clock test guest: the timeline of phases as the supervisor
// recorded it, the blackout's split as the two VMMs measured it, and the downtime as the guest itself saw it,
// read from its report in RAM from outside.
#include <fcntl.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "handoff/base/fd.hpp"
#include "handoff/shared_memory.hpp"
#include "supervisor/cli/control_client.hpp"
#include "supervisor/record.hpp"
#include "tests/guests/report.hpp"

namespace {

namespace fs = std::filesystem;
using namespace liveupdate;
using ::tests::guests::GapRecord;
using ::tests::guests::read_field;
using ::tests::guests::Report;

constexpr auto kAnswerTime = std::chrono::seconds(10);
constexpr auto kStartTime = std::chrono::seconds(30);
constexpr double kBarWidth = 40;

Result<nlohmann::json> ask(const std::string& name, const nlohmann::json& request) {
    TRY_ASSIGN(const supervisor::Paths paths, supervisor::resolve_paths());
    TRY_ASSIGN(auto client, supervisor::cli::ControlClient::connect(paths, name));
    return client.call(request, Deadline::after(kAnswerTime));
}

// The guest's first RAM block, by the supervisor's own descriptor of it.
Result<handoff::SharedMapping> map_ram(pid_t supervisor, uint64_t size) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator("/proc/" + std::to_string(supervisor) + "/fd", ignored)) {
        if (!fs::read_symlink(entry.path(), ignored).string().starts_with("/memfd:ram0")) continue;
        TRY_ASSIGN(const UniqueFd ram, fd::open(entry.path(), O_RDWR));
        return handoff::SharedMapping::map(ram.get(), 0, size, handoff::MapMode::kShared);
    }
    return Error(ErrorCode::kNotFound, "the supervisor has no memfd called ram0; is this another user's VM?");
}

class View {
public:
    static Result<View> of(const std::string& name) {
        View view;
        TRY_ASSIGN(const nlohmann::json status, ask(name, {{"command", "status"}}));
        TRY_ASSIGN(view.ram_, map_ram(status.at("supervisor").at("pid").get<pid_t>(),
                                  status.at("memory_bytes").get<uint64_t>()));
        const Deadline deadline = Deadline::after(kStartTime);
        const auto& header = view.report().header;
        while (read_field(header.magic) != ::tests::guests::kReportMagic || read_field(header.started) == 0) {
            if (deadline.passed())
                return Error(
                    ErrorCode::kTimeout, name + " does not run the clock test guest, or it does not start");
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
        view.khz_ = static_cast<double>(read_field(header.tsc_khz));
        return view;
    }

    // The guest's own gap that contains the switchover, the longest of all vCPUs; 0: shorter than it records.
    double downtime_ms(uint64_t at_tsc) const {
        double longest = 0;
        for (unsigned v = 0; v < vcpus(); ++v)
            for (const GapRecord& gap : gaps(v))
                if (gap.start_tsc <= at_tsc && at_tsc <= gap.end_tsc)
                    longest = std::max(longest, ms(gap.end_tsc - gap.start_tsc));
        return longest;
    }

    double longest_since(uint64_t tsc) const {
        double longest = 0;
        for (unsigned v = 0; v < vcpus(); ++v)
            for (const GapRecord& gap : gaps(v))
                if (gap.start_tsc >= tsc) longest = std::max(longest, ms(gap.end_tsc - gap.start_tsc));
        return longest;
    }

    uint64_t now() const { return read_field(report().vcpus[0].now_tsc); }
    uint64_t counter() const { return read_field(report().header.shared_counter); }
    uint64_t errors() const { return read_field(report().header.errors); }
    double shortest_gap_us() const { return ms(read_field(report().header.gap_ticks)) * 1000; }

private:
    const Report& report() const {
        return *reinterpret_cast<const Report*>(ram_.data() + ::tests::guests::kReportGpa);
    }
    unsigned vcpus() const {
        return static_cast<unsigned>(
            std::min<uint64_t>(read_field(report().header.vcpus), ::tests::guests::kMaxVcpus));
    }
    double ms(uint64_t ticks) const { return static_cast<double>(ticks) / khz_; }
    std::vector<GapRecord> gaps(unsigned vcpu) const {
        const uint64_t count = read_field(report().vcpus[vcpu].clock.gap_count);
        const auto* first = report().gaps[vcpu];
        return {first, first + std::min<uint64_t>(count, ::tests::guests::kGapRecords)};
    }

    handoff::SharedMapping ram_;
    double khz_ = 1;
};

void print_phases(const supervisor::UpdateRecord& record) {
    const double whole = std::max<double>(1, static_cast<double>(record.duration_us));
    for (const auto& phase : record.phases) {
        const auto column = [&](uint64_t us) {
            return static_cast<int>(static_cast<double>(us) / whole * kBarWidth);
        };
        const int from = column(phase.start_us);
        const int length = std::max(1, column(phase.end_us) - from);
        std::string bar(static_cast<size_t>(from), ' ');
        bar.append(static_cast<size_t>(length), phase.guest_on == supervisor::GuestOn::kNobody ? '!' : '=');
        bar.resize(static_cast<size_t>(kBarWidth) + 1, ' ');
        std::printf("    %-12s |%s| %8.2f ms  guest on %s\n", phase.phase.c_str(), bar.c_str(),
            static_cast<double>(phase.end_us - phase.start_us) / 1000,
            std::string(to_string(phase.guest_on)).c_str());
    }
}

void print_split(const supervisor::UpdateRecord& record) {
    if (!record.blackout_us) return;
    std::printf(
        "    blackout, by the VMMs' clocks:    %.2f ms (", static_cast<double>(*record.blackout_us) / 1000);
    const char* comma = "";
    for (const auto& part : record.blackout_split) {
        if (part.name.starts_with("section ")) continue;
        std::printf("%s%s %.2f", comma, part.name.c_str(), static_cast<double>(part.us) / 1000);
        comma = ", ";
    }
    std::printf(")\n");
}

Result<void> show_updates(const std::string& name, const View& view) {
    TRY_ASSIGN(const nlohmann::json history, ask(name, {{"command", "history"}, {"limit", 100}}));
    const auto& records = history.at("records");
    for (auto json = records.rbegin(); json != records.rend(); ++json) {
        TRY_ASSIGN(const supervisor::UpdateRecord record, supervisor::record_from_json(*json));
        std::printf("  %s  %s -> %s: %s\n", record.id.c_str(), record.from.version.c_str(),
            record.to.version.c_str(), std::string(to_string(record.outcome)).c_str());
        print_phases(record);
        print_split(record);
        if (!record.guest_tsc_at_switchover) continue;
        const double downtime = view.downtime_ms(*record.guest_tsc_at_switchover);
        if (downtime > 0)
            std::printf("    downtime, by the guest's own TSC:  %.2f ms\n\n", downtime);
        else
            std::printf("    downtime, by the guest's own TSC:  no gap longer than %.0f us\n\n",
                view.shortest_gap_us());
    }
    return {};
}

Result<void> show_present(const View& view) {
    const uint64_t from = view.now(), counted = view.counter();
    std::this_thread::sleep_for(std::chrono::seconds(1));
    std::printf("  For comparison, the longest gap of one second without an update: %.2f ms.\n",
        view.longest_since(from));
    std::printf("  The guest counts on (%llu, %llu a second later) and reports %llu errors.\n",
        static_cast<unsigned long long>(counted), static_cast<unsigned long long>(view.counter()),
        static_cast<unsigned long long>(view.errors()));
    if (view.errors() != 0) return Error(ErrorCode::kRefused, "the guest has found errors");
    return {};
}

Result<void> run(const std::string& name, bool wait_only) {
    TRY_ASSIGN(const View view, View::of(name));
    if (wait_only) return {};
    TRY(show_updates(name, view));
    return show_present(view);
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app{"The updates of a VM that runs the clock test guest, as it saw them itself"};
    std::string name;
    bool wait_only = false;
    app.add_option("NAME", name, "The VM")->required();
    app.add_flag("--wait", wait_only, "Only wait until the guest runs its main loop");
    CLI11_PARSE(app, argc, argv);
    const auto shown = run(name, wait_only);
    if (shown) return 0;
    std::fprintf(stderr, "guest_gaps: %s\n", shown.error().message.c_str());
    return 1;
}
