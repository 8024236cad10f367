// Many updates in a row, there and back between two builds, under guests that watch time, interrupts, memory
// and the serial port. LIVEUPDATE_TEST_UPDATES: how many (20).
#include <algorithm>
#include <climits>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stop_token>
#include <thread>
#include <vector>

#include "tests/integration/checks.hpp"

namespace liveupdate::tests {
namespace {

using ::tests::guests::kStopExit;
using ::tests::guests::read_field;
using ::tests::guests::TimerMode;
using ::tests::guests::TimerSlot;
using ::tests::guests::VcpuSlot;
using ::tests::guests::write_field;

constexpr unsigned kWarmUp = 2; // what is opened once, by either build, is there after these

unsigned updates() {
    return std::max(2u, number_from("LIVEUPDATE_TEST_UPDATES", 20));
}

// All the updates; on the way and at the end nothing may be held that was not held before.
void update_often(LiveVm& vm, unsigned vcpus) {
    const uint32_t epoch = vm.baton().read().epoch;
    update_in_turn(vm, 0, kWarmUp);
    const Holdings before = holdings_at_rest(vm);
    update_in_turn(vm, kWarmUp, updates() / 2 * 2);
    CHECK(vm.baton().read().epoch == epoch + kWarmUp + updates() / 2 * 2);
    check_sound(vm, vcpus);
    check_nothing_leaked(vm, before);
}

void check_clock(unsigned vcpus) {
    LiveVmOptions options;
    options.vcpus = vcpus;
    options.cmdline = "kvmclock=1 regs=1 skew_us=1000";
    const auto vm = started(options);
    const uint64_t counted = read_field(vm->report().header.shared_counter);
    update_often(*vm, vcpus);
    CHECK(read_field(vm->report().header.shared_counter) > counted);
    for (unsigned v = 0; v < vcpus; ++v) {
        const auto& clock = vm->report().vcpus[v].clock;
        // The guest itself saw the page change, and read its clock and its registers all the while.
        CHECK(
            LiveVm::eventually([&] { return read_field(clock.witness_epoch) == vm->baton().read().epoch; }));
        CHECK(read_field(clock.witness_changes) > 0);
        CHECK(read_field(clock.kvmclock_reads) > 0);
        CHECK(read_field(clock.register_checks) > 0);
    }
}

TEST_CASE("time never goes back for a guest with 1 vCPU, however often it is updated") {
    NEEDS_KVM();
    check_clock(1);
}
TEST_CASE("time never goes back for a guest with 2 vCPUs, however often it is updated") {
    NEEDS_KVM();
    check_clock(2);
}
TEST_CASE("time never goes back for a guest with 4 vCPUs, however often it is updated") {
    NEEDS_KVM();
    check_clock(4);
}

// In deadline mode each interrupt arms the next, at a multiple of the period: none can be made up by another.
// A late one catches up, so the count is right sooner or later, and for ever wrong if one was lost.
void check_deadline_timer(const VcpuSlot& slot, uint64_t tsc_khz) {
    const TimerSlot& timer = slot.timer;
    REQUIRE(read_field(timer.mode) == static_cast<uint64_t>(TimerMode::kTscDeadline));
    uint64_t due = 0, seen = 0;
    const bool complete = LiveVm::eventually([&] {
        due = (read_field(slot.now_tsc) - timer.t0_tsc) / timer.period_ticks;
        seen = read_field(timer.interrupts);
        return seen + 2 >= due && seen <= due + 2;
    });
    CHECK_MESSAGE(complete, "vCPU ", slot.index, ": ", seen, " interrupts of ", due);
    // KVM works a deadline out in nanoseconds from two clocks that it reads one after the other: a host that
    // takes the CPU away between the two makes the interrupt early by as much, update or not, and so does a
    // stop between KVM's early expiry and its waiting for the rest. The guest arms the deadline again. A
    // deadline that an update loads wrongly would be early nearly every time.
    std::printf("vCPU %llu: %llu early interrupts, by %llu us at most\n",
        static_cast<unsigned long long>(slot.index), static_cast<unsigned long long>(read_field(timer.early)),
        static_cast<unsigned long long>(read_field(timer.early_max_ticks) * 1000 / tsc_khz));
    CHECK(read_field(timer.early) <= updates() / 4);
}

void check_ipis(const LiveVm& vm, unsigned vcpus) {
    if (vcpus == 1) return;
    for (unsigned v = 0; v < vcpus; ++v) {
        const TimerSlot& sender = vm.report().vcpus[v].timer;
        const TimerSlot& receiver = vm.report().vcpus[(v + 1) % vcpus].timer;
        CHECK(read_field(sender.ipi_lost) == 0);
        CHECK(read_field(sender.ipi_sent) > 0);
        // One at a time, so at most the last one is under way.
        CHECK(LiveVm::eventually([&] {
            const uint64_t received = read_field(receiver.ipi_received);
            const uint64_t sent = read_field(sender.ipi_sent);
            return received <= sent && sent <= received + 1;
        }));
    }
}

// Ticks by now beyond those that are due; `ticks` were counted before now.
int64_t pit_surplus(const VcpuSlot& slot, uint64_t tsc_khz, uint64_t ticks) {
    const TimerSlot& timer = slot.timer;
    const auto elapsed = static_cast<double>(read_field(slot.now_tsc) - timer.pit_start_tsc);
    const double hz = 1193182.0 / static_cast<double>(timer.pit_divisor);
    const auto due = static_cast<int64_t>(elapsed / static_cast<double>(tsc_khz) / 1000.0 * hz);
    return static_cast<int64_t>(ticks) - due;
}

// Of a guest that has caught up, as it does at some moment. Each time is told after its ticks were counted: a
// guest that is late gets many at once, while the time that it tells stands still.
int64_t best_pit_surplus(const VcpuSlot& slot, uint64_t tsc_khz) {
    const uint64_t first = read_field(slot.timer.pit_interrupts);
    int64_t best = INT64_MIN;
    REQUIRE(LiveVm::eventually([&] {
        const uint64_t ticks = read_field(slot.timer.pit_interrupts), told = read_field(slot.now_tsc);
        const Deadline wait = Deadline::after(std::chrono::seconds(1));
        while (read_field(slot.now_tsc) == told && !wait.passed())
            std::this_thread::yield();
        best = std::max(best, pit_surplus(slot, tsc_khz, ticks));
        return ticks > first + 500;
    }));
    return best;
}

// The PIT goes on (the guest itself tells when it does not), and no tick is lost or comes twice beyond the
// difference of the two clocks' rates: a guest that has fallen behind catches up once it has a CPU. Lost is
// what is missing against `surplus_before`; twice came what is too much since the guest started the timer, as
// a guest with more vCPUs than there are CPUs may never have been caught up before the updates.
void check_pit(const LiveVm& vm, int64_t surplus_before, unsigned done) {
    const VcpuSlot& slot = vm.report().vcpus[0];
    const uint64_t khz = read_field(vm.report().header.tsc_khz);
    const auto ticks = static_cast<int64_t>(read_field(slot.timer.pit_interrupts));
    // 500 parts in a million, and what a host that gives the guest half a CPU leaves in doubt.
    const int64_t drift = ticks / 2000 + 3 + done / 10;
    int64_t surplus = 0;
    const bool right = LiveVm::eventually(
        [&] {
            surplus = pit_surplus(slot, khz, read_field(slot.timer.pit_interrupts));
            return surplus_before - drift <= surplus && surplus <= drift;
        },
        std::chrono::minutes(3));
    CHECK(LiveVm::eventually(
        [&] { return read_field(slot.timer.pit_interrupts) > static_cast<uint64_t>(ticks) + 100; }));
    std::printf("PIT: %lld ticks, surplus %lld before, %lld after %u updates\n",
        static_cast<long long>(ticks), static_cast<long long>(surplus_before),
        static_cast<long long>(surplus), done);
    CHECK_MESSAGE(right, "the PIT had a surplus of ", surplus_before, " ticks and has one of ", surplus,
        " after ", done, " updates and ", ticks, " ticks");
}

void check_timers(unsigned vcpus) {
    LiveVmOptions options;
    options.vcpus = vcpus;
    options.guest = "timer.elf";
    options.cmdline = "early_us=1000000"; // they are counted below
    const auto vm = started(options);
    const VcpuSlot& first = vm->report().vcpus[0];
    REQUIRE(LiveVm::eventually([&] { return read_field(first.timer.pit_interrupts) > 10; }));
    update_in_turn(*vm, 0, 2); // the first update may shift the PIT by a part of a period
    const int64_t surplus = best_pit_surplus(first, read_field(vm->report().header.tsc_khz));
    update_often(*vm, vcpus);
    for (unsigned v = 0; v < vcpus; ++v)
        check_deadline_timer(vm->report().vcpus[v], read_field(vm->report().header.tsc_khz));
    check_ipis(*vm, vcpus);
    check_pit(*vm, surplus, updates() + kWarmUp);
}

TEST_CASE("no timer interrupt is lost or doubled with 1 vCPU") {
    NEEDS_KVM();
    check_timers(1);
}
TEST_CASE("no timer interrupt and no IPI is lost or doubled with 2 vCPUs") {
    NEEDS_KVM();
    check_timers(2);
}
TEST_CASE("no timer interrupt and no IPI is lost or doubled with 4 vCPUs") {
    NEEDS_KVM();
    check_timers(4);
}

// Threads that never rest, so that the guest gets a part of a CPU.
std::vector<std::jthread> crowd() {
    std::vector<std::jthread> threads;
    for (unsigned i = 0; i < 2 * std::thread::hardware_concurrency(); ++i)
        threads.emplace_back([](const std::stop_token& stop) {
            while (!stop.stop_requested()) {
            }
        });
    return threads;
}

TEST_CASE("ticks that a guest without CPU has not taken are not lost in an update") {
    NEEDS_KVM();
    LiveVmOptions options;
    options.vcpus = 2;
    options.guest = "timer.elf";
    options.cmdline = "early_us=1000000 ipi=0";
    options.update_toml = "probation = \"20ms\"\nblackout_limit = \"10s\"\n";
    const auto vm = started(options);
    const VcpuSlot& first = vm->report().vcpus[0];
    REQUIRE(LiveVm::eventually([&] { return read_field(first.timer.pit_interrupts) > 10; }));
    update_in_turn(*vm, 0, 2); // the first update may shift the PIT by a part of a period
    const int64_t surplus = best_pit_surplus(first, read_field(vm->report().header.tsc_khz));
    {
        const auto busy = crowd();
        update_in_turn(*vm, 2, 10);
    }
    check_pit(*vm, surplus, 12);
}

void check_pattern(unsigned vcpus) {
    LiveVmOptions options;
    options.vcpus = vcpus;
    options.guest = "pattern.elf";
    options.memory_mib = 128;
    options.cmdline = "stride=64";
    const auto vm = started(options);
    update_often(*vm, vcpus);
    const unsigned done = updates();
    for (unsigned v = 0; v < vcpus; ++v) {
        const auto& pattern = vm->report().vcpus[v].pattern;
        // Two passes that began after the last update have read everything that was written before it.
        const uint64_t passes = read_field(pattern.passes);
        CHECK(LiveVm::eventually(
            [&] { return read_field(pattern.passes) >= passes + 2; }, std::chrono::seconds(60)));
        CHECK_MESSAGE(read_field(pattern.mismatches) == 0, "vCPU ", v, " after ", done, " updates, first at ",
            read_field(pattern.first_mismatch_gpa));
    }
    CHECK(read_field(vm->report().header.errors) == 0);
}

TEST_CASE("memory keeps its content with 1 vCPU") {
    NEEDS_KVM();
    check_pattern(1);
}
TEST_CASE("memory keeps its content with 2 vCPUs") {
    NEEDS_KVM();
    check_pattern(2);
}
TEST_CASE("memory keeps its content with 4 vCPUs") {
    NEEDS_KVM();
    check_pattern(4);
}

// "line 00000042 ............\n"
std::string line(uint64_t number) {
    char text[64];
    std::snprintf(text, sizeof(text), "line %08llu ............", static_cast<unsigned long long>(number));
    return text;
}

void check_console_file(const std::string& path, uint64_t lines) {
    std::ifstream file(path);
    uint64_t number = 0;
    for (std::string found; std::getline(file, found) && number < lines; ++number)
        REQUIRE_MESSAGE(found == line(number), "line ", number, " is '", found, "'");
    CHECK(number == lines);
}

void check_serial(unsigned vcpus) {
    const std::string path = "/tmp/liveupdate-test-console-" + std::to_string(::getpid()) + ".log";
    LiveVmOptions options;
    options.vcpus = vcpus;
    options.guest = "serial.elf";
    options.cmdline = "irq=1";
    options.console_toml = "type = \"file\"\npath = \"" + path + "\"\n";
    const auto vm = started(options);
    const auto& serial = vm->report().vcpus[0].serial;
    CHECK(
        LiveVm::eventually([&] { return read_field(serial.irq_mode) == 1 && read_field(serial.lines) > 0; }));
    update_often(*vm, vcpus);
    write_field(vm->writable_report().header.stop, kStopExit);
    CHECK(vm->await_supervisor_end() == 0);
    const uint64_t lines = read_field(serial.lines);
    CHECK(lines > 0);
    check_console_file(path, lines);
    ::unlink(path.c_str());
}

TEST_CASE("every serial line arrives once and in order with 1 vCPU") {
    NEEDS_KVM();
    check_serial(1);
}
TEST_CASE("every serial line arrives once and in order with 2 vCPUs") {
    NEEDS_KVM();
    check_serial(2);
}
TEST_CASE("every serial line arrives once and in order with 4 vCPUs") {
    NEEDS_KVM();
    check_serial(4);
}

} // namespace
} // namespace liveupdate::tests
