// What clones cost: how long from the command to the first instruction of the guest, how long until very many
// run, and how much memory each has for itself while it is idle.
#include <sys/uio.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <thread>

#include "handoff/shared_memory.hpp"
#include "supervisor/cli/control_client.hpp"
#include "tests/bench/gaps.hpp"
#include "tests/support/command.hpp"
#include "tests/support/live_vm.hpp"
#include "tests/support/memory_use.hpp"
#include "tests/support/origin_ram.hpp"

namespace {

using namespace liveupdate;
using namespace liveupdate::tests;

struct Settings {
    unsigned memory_mib = 256;
    unsigned touched_mib = 200;
    unsigned rounds = 50;
    unsigned count = 100;
    unsigned idle_s = 10;
    std::string part = "all";
};

constexpr unsigned kFilledFromMib = 32;

Result<void> run(const std::vector<std::string>& arguments) {
    std::vector<std::string> command = {program("liveupdate")};
    command.insert(command.end(), arguments.begin(), arguments.end());
    const auto result = run_command(command, {}, std::chrono::minutes(5));
    if (result.status == 0) return {};
    return Error(ErrorCode::kInternal, "liveupdate " + arguments.front() + ": " + result.err);
}

Result<nlohmann::json> status_of(const std::string& name) {
    TRY_ASSIGN(const auto paths, supervisor::resolve_paths());
    TRY_ASSIGN(auto client, supervisor::cli::ControlClient::connect(paths, name));
    return client.call({{"command", "status"}}, Deadline::after(std::chrono::seconds(20)));
}

// A guest that halts but for ten timer interrupts in a second, and has something in so much of its RAM.
Result<std::unique_ptr<LiveVm>> template_of(const Settings& s) {
    LiveVmOptions options;
    options.memory_mib = s.memory_mib;
    options.witness = false;
    options.guest = "timer.elf";
    options.cmdline = "idle=hlt period_us=100000 pit=0 ipi=0";
    TRY_ASSIGN(auto vm, LiveVm::start(options));
    if (!vm->guest_started()) return Error(ErrorCode::kTimeout, "the guest did not start");
    const auto ram = vm->ram();
    for (size_t at = size_t{kFilledFromMib} << 20; at < size_t{kFilledFromMib + s.touched_mib} << 20;
         at += 4096)
        std::fill_n(ram.begin() + static_cast<std::ptrdiff_t>(at), 4096, std::byte(at >> 12 | 1));
    vm->set_environment();
    TRY(run({"template", "create", "vm", "--name", "base", "--stop"}));
    return vm;
}

Result<void> poke(pid_t vmm, uint64_t address, uint64_t value) {
    const iovec here{&value, sizeof(value)}, there{reinterpret_cast<void*>(address), sizeof(value)};
    if (::process_vm_writev(vmm, &here, 1, &there, 1, 0) != ssize_t{sizeof(value)})
        return Error::from_errno("write to the guest's RAM");
    return {};
}

double ms(uint64_t from_ns, uint64_t to_ns) {
    return static_cast<double>(to_ns - from_ns) / 1e6;
}

Result<void> start(const Settings& s) {
    std::vector<double> first, all, ram, start, prepare, hand_over;
    for (unsigned i = 0; i < s.rounds; ++i) {
        const uint64_t before = monotonic_ns();
        TRY(run({"clone", "base", "one"}));
        all.push_back(ms(before, monotonic_ns()));
        TRY_ASSIGN(const auto status, status_of("one"));
        const auto restored = status.value("restored", nlohmann::json::object());
        first.push_back(ms(before, restored.value("entered_ns", before)));
        const auto part = [&](const char* key) {
            return static_cast<double>(restored.value(key, uint64_t{0})) / 1000;
        };
        ram.push_back(part("ram_us"));
        start.push_back(part("start_us"));
        prepare.push_back(part("prepare_us"));
        hand_over.push_back(part("hand_over_us"));
        TRY(run({"stop", "one", "--now"}));
    }
    std::printf("one clone of a guest with %u MiB, %u rounds\n", s.memory_mib, s.rounds);
    print_row("from the command to the guest's first instruction", first, "ms");
    print_row("  the supervisor: its RAM", ram, "ms");
    print_row("  start of the VMM", start, "ms");
    print_row("  its machine", prepare, "ms");
    print_row("  from its state to its vCPUs", hand_over, "ms");
    print_row("until the command returns", all, "ms");
    return {};
}

Result<void> many(const Settings& s) {
    const uint64_t before = monotonic_ns();
    TRY(run({"clone", "base", "many", "--count", std::to_string(s.count)}));
    const double all = ms(before, monotonic_ns()) / 1000;
    std::this_thread::sleep_for(std::chrono::seconds(s.idle_s));
    std::vector<double> guest, vmm, supervisor, sum, tables;
    std::vector<std::string> names = {"stop", "--now"};
    for (unsigned i = 1; i <= s.count; ++i) {
        names.push_back("many-" + std::to_string(i));
        TRY_ASSIGN(const auto status, status_of(names.back()));
        const pid_t vmm_pid = status.at("vmm").at("pid"), own_pid = status.at("supervisor").at("pid");
        TRY_ASSIGN(const UniqueFd file, ram_file_of(own_pid));
        const auto mib = [](uint64_t kib) { return static_cast<double>(kib) / 1024; };
        guest.push_back(mib(bytes_in(file.get()) / 1024));
        vmm.push_back(mib(kib_of(vmm_pid, "status", "RssAnon")));
        supervisor.push_back(mib(kib_of(own_pid, "status", "RssAnon")));
        tables.push_back(mib(kib_of(vmm_pid, "status", "VmPTE") + kib_of(own_pid, "status", "VmPTE")));
        sum.push_back(guest.back() + vmm.back() + supervisor.back());
    }
    TRY(run(names));
    std::printf("%u clones of a guest with %u MiB, of which %u are in use: all ran after %.2f s\n", s.count,
        s.memory_mib, s.touched_mib, all);
    std::printf("each, %u s later\n", s.idle_s);
    print_row("the guest's own RAM", guest, "MiB");
    print_row("private memory of its VMM", vmm, "MiB");
    print_row("private memory of its supervisor", supervisor, "MiB");
    print_row("in all", sum, "MiB");
    print_row("page tables beside", tables, "MiB");
    return {};
}

// A pass over a guest's RAM, one write a page, when each page comes as it is touched; beside it the first
// pass after a restore that has read all of it before, and a later pass.
Result<void> touched(const Settings& s) {
    using ::tests::guests::kPassRecords;
    using ::tests::guests::kReportGpa;
    using ::tests::guests::Report;
    LiveVmOptions options;
    options.memory_mib = s.memory_mib;
    options.witness = false;
    options.guest = "pattern.elf";
    options.cmdline = "touch=4096 step=1 limit_mb=" + std::to_string(s.memory_mib - 64);
    TRY_ASSIGN(auto vm, LiveVm::start(options));
    if (!vm->guest_started()) return Error(ErrorCode::kTimeout, "the guest did not start");
    vm->set_environment();
    const auto passes = [&] { return ::tests::guests::read_field(vm->report().vcpus[0].pattern.passes); };
    ::tests::guests::write_field(vm->writable_report().header.go, 2);
    if (!LiveVm::eventually([&] { return passes() == 2; }, std::chrono::seconds(60)))
        return Error(ErrorCode::kTimeout, "the guest does not pass over its RAM");
    TRY(run({"template", "create", "vm", "--name", "touched", "--stop"}));
    const std::string folder = vm->directory() + "/state/.templates/touched";
    std::vector<double> mapped, eager, later;
    for (unsigned i = 0; i < 2 * std::min(s.rounds, 10u); ++i) {
        const bool clone = i % 2 == 0;
        TRY(clone ? run({"clone", "touched", "one"}) : run({"restore", folder, "one"}));
        TRY_ASSIGN(const auto status, status_of("one"));
        const pid_t vmm = status.at("vmm").at("pid");
        for (const uint64_t pass : {3, 4}) {
            TRY_ASSIGN(const uint64_t go, address_in(vmm, kReportGpa + offsetof(Report, header.go), 8));
            TRY(poke(vmm, go, pass));
            Report now{};
            const bool done = LiveVm::eventually(
                [&] {
                    const auto raw = touch(vmm, kReportGpa, sizeof(Report));
                    if (raw) std::memcpy(&now, raw->data(), sizeof(Report));
                    return now.vcpus[0].pattern.passes == pass;
                },
                std::chrono::seconds(60));
            if (!done || now.header.errors != 0)
                return Error(
                    ErrorCode::kInternal, "the guest does not pass over its RAM, or found it damaged");
            const auto& record = now.passes[0][(pass - 1) % kPassRecords];
            const double us = static_cast<double>(record.end_tsc - record.start_tsc) * 1000 /
                              static_cast<double>(now.header.tsc_khz);
            const double per_page = us * 4096 / static_cast<double>(now.header.pattern_bytes);
            (pass == 4 ? later : clone ? mapped : eager).push_back(per_page);
        }
        TRY(run({"stop", "one", "--now"}));
    }
    std::printf("a pass over %u MiB, one write a page\n", s.memory_mib - 64);
    print_row("a clone's first", mapped, "us/page");
    print_row("the first after a restore of all RAM", eager, "us/page");
    print_row("a later one", later, "us/page");
    return {};
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app{"What clones cost"};
    Settings s;
    app.add_option("PART", s.part, "start, many, touch or all")
        ->check(CLI::IsMember({"start", "many", "touch", "all"}));
    app.add_option("--memory", s.memory_mib, "MiB");
    app.add_option("--touched", s.touched_mib, "MiB of it that are not zero");
    app.add_option("--rounds", s.rounds);
    app.add_option("--count", s.count, "clones at once");
    app.add_option("--idle", s.idle_s, "seconds until their memory is looked at");
    CLI11_PARSE(app, argc, argv);
    if (const std::string why = why_no_kvm(); !why.empty()) {
        std::printf("SKIPPED: %s\n", why.c_str());
        return 0;
    }
    const auto vm = template_of(s);
    if (!vm) {
        std::fprintf(stderr, "bench: %s\n", vm.error().message.c_str());
        return 1;
    }
    for (const auto& [part, measure] :
        {std::pair{"start", &start}, std::pair{"many", &many}, std::pair{"touch", &touched}}) {
        if (s.part != part && s.part != "all") continue;
        if (const auto done = measure(s); !done) {
            std::fprintf(stderr, "bench: %s\n", done.error().message.c_str());
            return 1;
        }
    }
    return 0;
}
