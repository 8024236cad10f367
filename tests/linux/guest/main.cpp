// The first process of the Linux guest: does the work that lu.* on the kernel's command line names, checks
// it, and tells what it sees on the console. tests/linux/README.md lists the words and the lines.
#include <poll.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "tests/linux/guest/clock_check.hpp"
#include "tests/linux/guest/disk_check.hpp"
#include "tests/linux/guest/file_check.hpp"
#include "tests/linux/guest/kernel_log.hpp"
#include "tests/linux/guest/machine.hpp"
#include "tests/linux/guest/net_check.hpp"
#include "tests/linux/guest/options.hpp"
#include "tests/linux/guest/report.hpp"
#include "tests/linux/guest/vector_registers.hpp"

namespace {

using namespace linux_guest;

std::atomic<bool> power_button = false;

std::unique_ptr<NetCheck> connected(NetOptions options) {
    auto check = std::make_unique<NetCheck>(std::move(options));
    check->connect();
    return check;
}

std::vector<std::unique_ptr<Check>> make_checks(const Options& options, SharedClocks& clocks) {
    std::vector<std::unique_ptr<Check>> checks;
    checks.push_back(std::make_unique<KernelLog>());
    std::uint32_t disk = 0;
    for (const std::string& name : options.list("disk")) {
        DiskOptions of{name, disk++};
        of.blocks = options.number("blocks", of.blocks);
        of.request_blocks = static_cast<unsigned>(options.number("request_blocks", of.request_blocks));
        of.depth = static_cast<unsigned>(options.number("depth", of.depth));
        of.pause_us = options.number("disk_pause_us", of.pause_us);
        of.wander = options.number("wander", 0) != 0;
        checks.push_back(std::make_unique<DiskCheck>(std::move(of)));
    }
    for (const std::string& name : options.list("files"))
        checks.push_back(std::make_unique<FileCheck>(name, options.number("file_pause_us", 20000)));
    if (const std::string address = options.word("address"); !address.empty()) {
        NetOptions of{options.word("net", "eth0"), address, options.word("peer")};
        of.chunk = options.number("tcp_chunk", of.chunk);
        of.pause_us = options.number("tcp_pause_us", of.pause_us);
        of.wander = options.number("wander", 0) != 0;
        if (set_up_interface(of.interface, address) && !of.peer.empty())
            checks.push_back(connected(std::move(of)));
    }
    if (options.number("clock", 0) != 0) {
        ClockOptions of;
        of.spin_us = options.number("spin_us", of.spin_us);
        of.rest_us = options.number("rest_us", of.rest_us);
        of.step_us = options.number("step_us", of.step_us);
        for (unsigned cpu = 0; cpu < std::thread::hardware_concurrency(); ++cpu)
            checks.push_back(std::make_unique<ClockCheck>(clocks, cpu, of));
        checks.push_back(std::make_unique<TimerCheck>(options.number("timer_us", 5000)));
    }
    return checks;
}

// One line from the console, as far as it has come; empty after `wait_ms`.
std::string command(int wait_ms) {
    static std::string begun;
    pollfd poll{STDIN_FILENO, POLLIN, 0};
    if (::poll(&poll, 1, wait_ms) <= 0) return {};
    char bytes[256];
    const ssize_t n = ::read(STDIN_FILENO, bytes, sizeof(bytes));
    if (n <= 0) sleep_us(static_cast<std::uint64_t>(wait_ms) * 1000); // there is no console
    for (ssize_t i = 0; i < n; ++i) {
        if (bytes[i] == '\n' || bytes[i] == '\r') return std::exchange(begun, {});
        begun += bytes[i];
    }
    return {};
}

void say_progress(const std::vector<std::unique_ptr<Check>>& checks, const char* word) {
    for (const auto& check : checks)
        say(std::string(word) + " " + check->progress());
}

// Works until "stop", the power button or the end of the time; then waits for the closing checks.
void work(const Options& options) {
    SharedClocks clocks;
    const auto checks = make_checks(options, clocks);
    std::atomic<bool> stop = false;
    std::vector<std::jthread> threads;
    for (const auto& check : checks)
        threads.emplace_back([&stop, &check] { check->run(stop); });
    say("working");
    const std::uint64_t began = now_ns(), seconds = options.number("seconds", 0);
    const std::uint64_t progress_ns = options.number("progress_ms", 2000) * 1'000'000;
    std::uint64_t due = began + progress_ns;
    while (!power_button) {
        if (command(200) == "stop" || (seconds > 0 && now_ns() - began > seconds * 1'000'000'000)) break;
        if (now_ns() < due) continue;
        say_progress(checks, "progress");
        due = now_ns() + progress_ns;
    }
    if (power_button) say("power button");
    say("stopping");
    stop = true;
    threads.clear();
    say_progress(checks, "result");
}

// A C library that trusts CPUID would use AVX, which this kernel does not save on a context switch.
void without_avx(char** argv) {
    if (kernel_offers_avx() || std::getenv("GLIBC_TUNABLES") != nullptr) return;
    ::setenv("GLIBC_TUNABLES",
        "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-AVX_Fast_Unaligned_Load", 1);
    ::execv("/proc/self/exe", argv);
}

void run_shell() {
    if (::fork() == 0) {
        ::execl("/bin/busybox", "busybox", "sh", nullptr);
        ::_exit(127);
    }
    int status = 0;
    ::wait(&status);
}

} // namespace

int main(int, char** argv) {
    std::signal(SIGPIPE, SIG_IGN);
    mount_file_systems();
    without_avx(argv);
    load_modules();
    on_power_button([] { power_button = true; });
    const Options options(kernel_command_line());
    utsname name{};
    ::uname(&name);
    say(text("ok init kernel=%s cpus=%u up_ms=%llu", name.release, std::thread::hardware_concurrency(),
        static_cast<unsigned long long>(now_ns() / 1'000'000)));
    quiet_console();
    work(options);
    say(text("summary errors=%llu", static_cast<unsigned long long>(errors())));
    if (options.number("poweroff", 0) == 0)
        for (std::string word = command(1000); word != "poweroff" && !power_button; word = command(1000))
            if (word == "sh") run_shell();
    power_off();
}
