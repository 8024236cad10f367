// What a save and a restore cost: how long the guest stands still in place, beside its update's blackout;
// what is written of RAM of which half is zero; and how fast, beside fio with the same block size and depth.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <thread>

#include "supervisor/cli/control_client.hpp"
#include "tests/bench/gaps.hpp"
#include "tests/support/command.hpp"
#include "tests/support/live_vm.hpp"
#include "tests/support/temporary_folder.hpp"

namespace {

using namespace liveupdate;
using namespace liveupdate::tests;
namespace fs = std::filesystem;

struct Settings {
    unsigned memory_mib = 1024;
    unsigned rounds = 5;
    std::string directory = "/var/tmp";
    std::string part = "all";
};

int fail(const Error& error) {
    std::fprintf(stderr, "bench: %s\n", error.message.c_str());
    return 1;
}

// Every other 64 KiB from 32 MiB on has something in it.
void fill_half(LiveVm& vm) {
    const auto ram = vm.ram();
    for (size_t at = size_t{32} << 20; at < ram.size(); at += 4096)
        if (at / 65536 % 2 == 0)
            std::fill_n(ram.begin() + static_cast<std::ptrdiff_t>(at), 4096, std::byte(at >> 12 | 1));
}

uint64_t non_zero_bytes(LiveVm& vm) {
    static constexpr std::byte kZeros[4096] = {};
    uint64_t bytes = 0;
    const auto ram = vm.ram();
    for (size_t at = 0; at < ram.size(); at += 4096)
        if (std::memcmp(ram.data() + at, kZeros, 4096) != 0) bytes += 4096;
    return bytes;
}

Result<nlohmann::json> save(LiveVm& vm, const std::string& directory, const std::string& kind) {
    return vm.call({{"command", "save"}, {"directory", directory}, {"kind", kind}});
}

double ms(const nlohmann::json& report, const char* key) {
    return static_cast<double>(report.value(key, uint64_t{0})) / 1000;
}

Result<void> in_place(const Settings& s) {
    const TemporaryFolder shm("/dev/shm");
    LiveVmOptions options;
    options.memory_mib = s.memory_mib;
    options.backing = "tmpfs";
    options.witness = false;
    options.update_toml = "probation = \"50ms\"\n";
    TRY_ASSIGN(auto vm, LiveVm::start(options));
    if (!vm->guest_started()) return Error(ErrorCode::kTimeout, "the guest did not start");
    fill_half(*vm);
    std::vector<double> blackout, stop, start, prepare, hand_over;
    for (unsigned i = 0; i < s.rounds; ++i) {
        TRY_ASSIGN(
            const auto record, vm->update(program(i % 2 == 0 ? "liveupdate-vmm-next" : "liveupdate-vmm")));
        blackout.push_back(static_cast<double>(record.blackout_us.value_or(0)) / 1000);
        TRY_ASSIGN(const auto report, save(*vm, shm.at("saved"), "in-place"));
        stop.push_back(ms(report, "stood_still_us"));
        vm->await_supervisor_end();
        TRY(vm->restore(shm.at("saved")));
        const auto restored = vm->status().value("restored", nlohmann::json::object());
        start.push_back(ms(restored, "start_us"));
        prepare.push_back(ms(restored, "prepare_us"));
        hand_over.push_back(ms(restored, "hand_over_us"));
        if (!vm->goes_on()) return Error(ErrorCode::kInternal, "the restored guest does not go on");
    }
    std::printf("in place, %u MiB on tmpfs, half of it zero, %u rounds\n", s.memory_mib, s.rounds);
    print_row("an update's blackout", blackout, "ms");
    print_row("save: from the stop to the state's file", stop, "ms");
    print_row("restore: start of the VMM", start, "ms");
    print_row("restore: its machine", prepare, "ms");
    print_row("restore: from its state to its vCPUs", hand_over, "ms");
    return {};
}

// MiB/s of fio, which writes or reads as many bytes with the same block size and depth.
double fio(const std::string& directory, const std::string& way, uint64_t bytes) {
    if (way == "write") fs::remove(directory + "/fio"); // as a save does: into a new file
    const auto run =
        run_command({"fio", "--name=beside", "--filename=" + directory + "/fio", "--rw=" + way, "--bs=64k",
                        "--size=" + std::to_string(bytes / 2), "--numjobs=2", "--offset_increment=50%",
                        "--iodepth=16", "--ioengine=io_uring", "--direct=1", "--fallocate=none",
                        "--end_fsync=1", "--group_reporting", "--output-format=json"},
            {}, std::chrono::seconds(120));
    const auto json = nlohmann::json::parse(run.out, nullptr, false);
    if (run.status != 0 || json.is_discarded()) return 0;
    const auto& job = json["jobs"][0][way == "write" ? "write" : "read"];
    return job["bw_bytes"].get<double>() / (1 << 20);
}

// From the switch to the guest, whose RAM comes then, until all of it is there.
Result<void> lazily(const Settings& s) {
    const TemporaryFolder folder(s.directory);
    LiveVmOptions options;
    options.memory_mib = s.memory_mib;
    options.witness = false;
    options.guest = "pattern.elf";
    options.cmdline = "stride=4096 limit_mb=256";
    TRY_ASSIGN(auto vm, LiveVm::start(options));
    if (!vm->guest_started()) return Error(ErrorCode::kTimeout, "the guest did not start");
    // Beyond what the guest covers every other 64 KiB, as in fill_half().
    const auto is_filled = [](size_t at) { return at / 65536 % 2 == 0; };
    const auto ram = vm->ram();
    for (size_t at = size_t{512} << 20; at < ram.size(); at += 4096)
        if (is_filled(at)) ram[at] = std::byte{1};
    std::vector<double> start, prepare, hand_over, all;
    for (unsigned i = 0; i < s.rounds; ++i) {
        TRY(vm->call({{"command", "save"}, {"directory", folder.at("saved")}, {"stop", true}}));
        vm->await_supervisor_end();
        const uint64_t before = monotonic_ns();
        TRY(vm->restore(folder.at("saved"), "", {"--lazy"}));
        const auto restored = vm->status().value("restored", nlohmann::json::object());
        start.push_back(ms(restored, "start_us"));
        prepare.push_back(ms(restored, "prepare_us"));
        hand_over.push_back(ms(restored, "hand_over_us"));
        // Absent once all has come, null when the VMM did not answer.
        const auto all_there = [&] {
            const auto told = vm->status().value("restored", nlohmann::json::object());
            return !told.contains("ram_to_fill") || told["ram_to_fill"] == 0;
        };
        if (!LiveVm::eventually(all_there, std::chrono::seconds(120)))
            return Error(ErrorCode::kTimeout, "the guest's RAM did not come");
        all.push_back(static_cast<double>(monotonic_ns() - before) / 1e6);
        // The guest finds each of its 256 MiB as it was, or reports an error; the rest is looked at here.
        const auto passes = [&] { return ::tests::guests::read_field(vm->report().vcpus[0].counter); };
        const uint64_t counter = passes();
        const bool on = LiveVm::eventually([&] { return passes() > counter + 1; }, std::chrono::seconds(60));
        if (!on || ::tests::guests::read_field(vm->report().header.errors) != 0)
            return Error(ErrorCode::kInternal, "the guest found its RAM damaged");
        const auto now = vm->ram();
        for (size_t at = size_t{512} << 20; at < now.size(); at += 4096)
            if (now[at] != (is_filled(at) ? std::byte{1} : std::byte{0}))
                return Error(ErrorCode::kInternal, "a page is not as it was");
    }
    std::printf("lazily, %u MiB of which half is zero, %u rounds\n", s.memory_mib, s.rounds);
    print_row("restore: start of the VMM", start, "ms");
    print_row("restore: its machine", prepare, "ms");
    print_row("restore: from its state to its vCPUs", hand_over, "ms");
    print_row("from the command until all RAM is there", all, "ms");
    return {};
}

Result<void> to_file(const Settings& s) {
    const TemporaryFolder folder(s.directory);
    LiveVmOptions options;
    options.memory_mib = s.memory_mib;
    options.witness = false;
    TRY_ASSIGN(auto vm, LiveVm::start(options));
    if (!vm->guest_started()) return Error(ErrorCode::kTimeout, "the guest did not start");
    fill_half(*vm);
    const bool have_fio = run_command({"fio", "--version"}).status == 0;
    std::vector<double> excess, write_speed, write_fio, read_speed, read_fio, still, sync;
    for (unsigned i = 0; i < s.rounds; ++i) {
        const auto wanted = static_cast<double>(non_zero_bytes(*vm));
        TRY_ASSIGN(const auto report, save(*vm, folder.at("saved"), "file"));
        const auto written = static_cast<double>(report.value("written_bytes", uint64_t{0}));
        excess.push_back((written / wanted - 1) * 100);
        const double seconds = ms(report, "duration_us") / 1000;
        write_speed.push_back(written / (1 << 20) / seconds);
        still.push_back(ms(report, "stood_still_us"));
        sync.push_back(ms(report, "sync_us"));
        if (have_fio) write_fio.push_back(fio(folder.at(""), "write", static_cast<uint64_t>(written)));
        static_cast<void>(vm->call({{"command", "stop"}}));
        vm->await_supervisor_end();
        TRY(vm->restore(folder.at("saved")));
        const auto restored = vm->status().value("restored", nlohmann::json::object());
        read_speed.push_back(written / (1 << 20) / (ms(restored, "ram_us") / 1000));
        if (have_fio) read_fio.push_back(fio(folder.at(""), "read", static_cast<uint64_t>(written)));
        if (!vm->goes_on()) return Error(ErrorCode::kInternal, "the restored guest does not go on");
    }
    std::printf(
        "to a file in %s, %u MiB, half of it zero, %u rounds\n", s.directory.c_str(), s.memory_mib, s.rounds);
    print_row("written beyond what is not zero", excess, "%");
    print_row("the guest stood still", still, "ms");
    print_row("  after it, until the disk has it all", sync, "ms");
    print_row("save, syncs included", write_speed, "MiB/s");
    if (have_fio) print_row("fio: writes of 64 KiB, 2 x 16 in flight", write_fio, "MiB/s");
    print_row("restore: RAM", read_speed, "MiB/s");
    if (have_fio) print_row("fio: reads of 64 KiB, 2 x 16 in flight", read_fio, "MiB/s");
    if (!have_fio) std::printf("SKIPPED: fio is not installed, so there is nothing to compare with\n");
    return {};
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app{"What a save and a restore cost"};
    Settings s;
    app.add_option("PART", s.part, "in-place, file, lazy or all")
        ->check(CLI::IsMember({"in-place", "file", "lazy", "all"}));
    app.add_option("--memory", s.memory_mib, "MiB");
    app.add_option("--rounds", s.rounds);
    app.add_option("--directory", s.directory, "where files are saved");
    CLI11_PARSE(app, argc, argv);
    if (const std::string why = why_no_kvm(); !why.empty()) {
        std::printf("SKIPPED: %s\n", why.c_str());
        return 0;
    }
    const auto wanted = [&](const char* part) { return s.part == part || s.part == "all"; };
    if (wanted("in-place"))
        if (const auto done = in_place(s); !done) return fail(done.error());
    if (wanted("file"))
        if (const auto done = to_file(s); !done) return fail(done.error());
    if (wanted("lazy"))
        if (const auto done = lazily(s); !done) return fail(done.error());
    return 0;
}
