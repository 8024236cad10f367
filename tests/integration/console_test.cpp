// A virtio console under updates: every byte of the guest is read once and in order, and every byte for it
// comes in once and in order. LIVEUPDATE_TEST_UPDATES: how many (20).
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "handoff/base/fd.hpp"
#include "tests/integration/checks.hpp"
#include "tests/support/temporary_folder.hpp"

namespace liveupdate::tests {
namespace {

using ::tests::guests::ConsoleReport;
using ::tests::guests::read_field;
using ::tests::guests::write_field;

unsigned updates() {
    return std::max(2u, number_from("LIVEUPDATE_TEST_UPDATES", 20));
}

LiveVmOptions with_console(const std::string& console_toml, const std::string& cmdline) {
    LiveVmOptions options;
    options.guest = "console.elf";
    options.console_toml = "device = \"virtio\"\n" + console_toml;
    options.cmdline = cmdline;
    return options;
}

std::string lines_to(uint64_t count) {
    std::string text;
    for (uint64_t i = 0; i < count; ++i)
        text += "line " + std::to_string(i) + "\n";
    return text;
}

// Where two texts part, for the failure's report.
void check_same(const std::string& got, const std::string& expected) {
    const auto [a, b] = std::mismatch(got.begin(), got.end(), expected.begin(), expected.end());
    if (a == got.end() && b == expected.end()) return;
    const auto at = static_cast<size_t>(a - got.begin());
    const size_t from = at < 40 ? 0 : at - 40;
    FAIL(got.size(), " bytes of ", expected.size(), ", differing at ", at, ": ", got.substr(from, 80),
        " instead of ", expected.substr(from, 80));
}

UniqueFd connect_to(LiveVm& vm) {
    const auto status = vm.status();
    CHECK(status["console"]["device"] == "virtio");
    auto client = fd::unix_connect(status["console"]["path"].get<std::string>(), SOCK_STREAM);
    if (!client) FAIL(client.error().message);
    return std::move(*client);
}

// What comes within the limit, up to `bytes` bytes.
std::string read_some(int fd, size_t bytes) {
    std::string text;
    std::array<char, 4096> chunk{};
    const Deadline limit = Deadline::after(std::chrono::seconds(60));
    while (text.size() < bytes && !limit.passed()) {
        pollfd polled{fd, POLLIN, 0};
        ::poll(&polled, 1, 100);
        const ssize_t got =
            ::recv(fd, chunk.data(), std::min(chunk.size(), bytes - text.size()), MSG_DONTWAIT);
        if (got > 0) text.append(chunk.data(), static_cast<size_t>(got));
        if (got == 0) break;
    }
    return text;
}

TEST_CASE("each line of the guest is written to the console's file once and in order") {
    NEEDS_KVM();
    TemporaryFolder folder;
    const std::string path = folder.at("console");
    const auto vm = started(with_console("type = \"file\"\npath = \"" + path + "\"\n", ""));
    const ConsoleReport& report = vm->report().header.console;
    REQUIRE(read_field(report.up) == 1);
    const unsigned count = updates();
    for (unsigned n = 0; n < count; ++n) {
        const uint64_t lines = read_field(report.lines);
        update_in_turn(*vm, n, 1);
        REQUIRE(LiveVm::eventually([&] { return read_field(report.lines) > lines + 100; }));
    }
    write_field(vm->writable_report().header.go, 1);
    uint64_t lines = 0;
    REQUIRE(LiveVm::eventually([&] { return std::exchange(lines, read_field(report.lines)) == lines; }));
    const std::string expected = lines_to(lines);
    std::string got;
    REQUIRE(LiveVm::eventually([&] {
        const auto file = fd::read_file(path, size_t{1} << 30);
        got = file ? *file : "";
        return got.size() >= expected.size();
    }));
    check_same(got, expected);
    check_sound(*vm, 1);
    std::printf("%llu lines in %u updates\n", static_cast<unsigned long long>(lines), count);
}

TEST_CASE("a guest whose reader is slow waits for it, also over updates") {
    NEEDS_KVM();
    const auto vm = started(with_console("type = \"socket\"\n", "lines=20000 wait=1"));
    const UniqueFd client = connect_to(*vm);
    update_in_turn(*vm, 0, 1); // which the client goes through: it is connected by now
    write_field(vm->writable_report().header.go, 1);
    std::string got;
    const unsigned count = updates();
    for (unsigned n = 1; n < count; ++n) {
        got += read_some(client.get(), 2000);
        update_in_turn(*vm, n, 1);
    }
    const std::string expected = lines_to(20000);
    CHECK(read_field(vm->report().header.console.lines) < 20000); // it does wait
    got += read_some(client.get(), expected.size() - got.size());
    check_same(got, expected);
    check_sound(*vm, 1);
}

TEST_CASE("each byte for the guest comes in once and in order") {
    NEEDS_KVM();
    const auto vm = started(with_console("type = \"socket\"\n", "echo=1"));
    const UniqueFd client = connect_to(*vm);
    const std::string typed = lines_to(3000);
    std::jthread typist([&] {
        for (size_t at = 0; at < typed.size();) {
            const size_t count = std::min<size_t>(97, typed.size() - at);
            if (::send(client.get(), typed.data() + at, count, MSG_NOSIGNAL) != static_cast<ssize_t>(count))
                return;
            at += count;
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
    });
    std::string got;
    const unsigned count = updates();
    for (unsigned n = 0; n < count; ++n) {
        update_in_turn(*vm, n, 1);
        got += read_some(client.get(), std::min<size_t>(300, typed.size() - got.size()));
    }
    got += read_some(client.get(), typed.size() - got.size());
    typist.join();
    check_same(got, typed);
    CHECK(read_field(vm->report().header.console.received) == typed.size());
    check_sound(*vm, 1);
}

} // namespace
} // namespace liveupdate::tests
