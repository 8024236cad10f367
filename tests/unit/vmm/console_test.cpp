#include "vmm/devices/console.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>

#include <array>
#include <thread>

#include "handoff/base/fd.hpp"
#include "tests/unit/vmm/fakes.hpp"
#include "vmm/devices/serial.hpp"
#include "vmm/devices/serial_registers.hpp"

namespace liveupdate::vmm::test {
namespace {

using namespace std::chrono_literals;
using ConsolePtr = std::unique_ptr<Console>;

// A serial port on a console, and one turn of the console's loop.
struct Bench {
    FakeLine line;
    ConsolePtr console;
    Serial serial;

    explicit Bench(ConsolePtr c) : console(std::move(c)), serial("serial0", line, *console) {
        console->connect(serial);
        serial.write(uart::kFifoControl, 1, uart::kFifoEnable);
    }
    void turn(int wait_ms = 0) {
        std::vector<pollfd> fds;
        console->collect(fds);
        ::poll(fds.data(), fds.size(), wait_ms);
        console->dispatch(fds);
    }
    void turns(int count = 8) {
        for (int i = 0; i < count; ++i)
            turn();
    }
    void send(const std::string& text) {
        for (const char c : text)
            serial.write(uart::kData, 1, static_cast<uint8_t>(c));
    }
    // Sends until the transmitter is full, as a driver that waits for THRE does, and serves the loop.
    size_t send_until_stuck() {
        size_t sent = 0;
        for (int idle = 0; idle < 4;) {
            if (serial.read(uart::kLineStatus, 1) & uart::kTransmitHoldingEmpty) {
                send("x");
                ++sent;
                idle = 0;
                if (sent > (4u << 20)) break;
            } else {
                turn();
                ++idle;
            }
        }
        return sent;
    }
    std::string typed() {
        std::string got;
        while (serial.read(uart::kLineStatus, 1) & uart::kDataReady)
            got += static_cast<char>(serial.read(uart::kData, 1));
        return got;
    }
};

// A listening socket without a name of its own (the kernel picks an abstract one), and ways to it.
struct Listener {
    UniqueFd fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    sockaddr_un address{};
    socklen_t size = sizeof address;

    Listener() {
        sa_family_t family = AF_UNIX;
        REQUIRE(::bind(fd.get(), reinterpret_cast<sockaddr*>(&family), sizeof family) == 0);
        REQUIRE(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
        REQUIRE(::listen(fd.get(), 4) == 0);
    }
    UniqueFd connect() const {
        UniqueFd client(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        REQUIRE(::connect(client.get(), reinterpret_cast<const sockaddr*>(&address), size) == 0);
        return client;
    }
    UniqueFd share() const { return *liveupdate::fd::dup(fd.get()); }
};

std::string read_some(int fd) {
    std::string all;
    std::array<char, 4096> chunk;
    ssize_t got = 0;
    const int flags = ::fcntl(fd, F_GETFL);
    ::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    while ((got = ::read(fd, chunk.data(), chunk.size())) > 0)
        all.append(chunk.data(), static_cast<size_t>(got));
    return all;
}

void write_text(int fd, const std::string& text) {
    REQUIRE(liveupdate::fd::write_all(fd, text.data(), text.size()));
}

std::pair<UniqueFd, UniqueFd> open_pty() {
    UniqueFd master(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
    REQUIRE(::grantpt(master.get()) == 0);
    REQUIRE(::unlockpt(master.get()) == 0);
    std::array<char, 64> name{};
    REQUIRE(::ptsname_r(master.get(), name.data(), name.size()) == 0);
    UniqueFd slave(::open(name.data(), O_RDWR | O_NOCTTY | O_CLOEXEC));
    REQUIRE(slave);
    termios raw{};
    ::tcgetattr(slave.get(), &raw);
    ::cfmakeraw(&raw);
    ::tcsetattr(slave.get(), TCSANOW, &raw);
    return {std::move(master), std::move(slave)};
}

ConsolePtr checked(Result<ConsolePtr> console) {
    REQUIRE_MESSAGE(console.has_value(), (console ? "" : console.error().message));
    return std::move(console).value();
}

TEST_CASE("a file takes all output in order") {
    const auto file = liveupdate::fd::memfd_create("console", 0);
    REQUIRE(file);
    ::fcntl(file->get(), F_SETFL, O_APPEND);
    Bench bench(checked(Console::file(*liveupdate::fd::dup(file->get()))));
    bench.console->unhold();
    std::string expected;
    for (int i = 0; i < 100; ++i) {
        const std::string text = std::string(400, static_cast<char>('a' + i % 26));
        bench.send(text);
        expected += text;
        bench.turn();
    }
    bench.turns();
    ::lseek(file->get(), 0, SEEK_SET);
    CHECK(read_some(file->get()) == expected);
    CHECK(bench.serial.dropped_output() == 0);
}

TEST_CASE("a file that cannot be written to does not hold the guest up") {
    UniqueFd full(::open("/dev/full", O_WRONLY | O_APPEND | O_CLOEXEC));
    REQUIRE(full);
    Bench bench(checked(Console::file(std::move(full), {1h, 1h})));
    bench.console->unhold();
    bench.send("x");
    bench.turn();
    CHECK(bench.console->reader() == ConsoleReader::kAway);
    CHECK(bench.console->next_wake().left() > 1min);
    CHECK(bench.send_until_stuck() > Serial::kOutputCapacity * 2);
}

TEST_CASE("nothing is written or read before a console is let go") {
    Listener listener;
    auto client = listener.connect();
    Bench bench(checked(Console::socket(listener.share(), {})));
    bench.send("early");
    bench.turns();
    CHECK(bench.console->client_fd() == -1);
    bench.console->unhold();
    bench.turns();
    CHECK(read_some(client.get()) == "early");
}

TEST_CASE("a socket carries bytes both ways and input waits for room") {
    Listener listener;
    Bench bench(checked(Console::socket(listener.share(), {})));
    bench.console->unhold();
    auto client = listener.connect();
    write_text(client.get(), "a line longer than the receive FIFO is");
    bench.send("hello");
    std::string got;
    for (int i = 0; i < 6; ++i) {
        bench.turns();
        got += bench.typed();
    }
    CHECK(got == "a line longer than the receive FIFO is");
    CHECK(read_some(client.get()) == "hello");
}

TEST_CASE("output from before the first client is kept, the oldest first") {
    Listener listener;
    Bench bench(checked(Console::socket(listener.share(), {})));
    bench.console->unhold();
    bench.send("boot" + std::string(Serial::kOutputCapacity, '.') + "late");
    auto client = listener.connect();
    bench.turns();
    const std::string got = read_some(client.get());
    CHECK(got.size() == Serial::kOutputCapacity);
    CHECK(got.substr(0, 4) == "boot");
    CHECK(bench.serial.dropped_output() == 8);
}

TEST_CASE("a client that reads nothing holds the guest up until it reads or leaves") {
    Listener listener;
    Bench bench(checked(Console::socket(listener.share(), {})));
    bench.console->unhold();
    auto client = listener.connect();
    bench.turns();
    size_t sent = bench.send_until_stuck();
    CHECK(bench.serial.dropped_output() == 0);
    const size_t got = read_some(client.get()).size();
    CHECK(got > 0);
    bench.turns();
    CHECK((bench.serial.read(uart::kLineStatus, 1) & uart::kTransmitHoldingEmpty) != 0);
    sent += bench.send_until_stuck();
    client.reset();
    bench.turns();
    CHECK(bench.console->reader() == ConsoleReader::kAway);
    CHECK((bench.serial.read(uart::kLineStatus, 1) & uart::kTransmitHoldingEmpty) != 0);
}

TEST_CASE("one client at a time is served, the next when it has left") {
    Listener listener;
    Bench bench(checked(Console::socket(listener.share(), {})));
    bench.console->unhold();
    auto first = listener.connect();
    auto second = listener.connect();
    bench.turns();
    bench.send("1");
    bench.turns();
    CHECK(read_some(first.get()) == "1");
    first.reset();
    bench.turns();
    bench.send("2");
    bench.turns();
    CHECK(read_some(second.get()) == "2");
}

TEST_CASE("what a client sent before it left still arrives, unless the next client comes first") {
    Listener listener;
    Bench bench(checked(Console::socket(listener.share(), {})));
    bench.console->unhold();
    auto first = listener.connect();
    const std::string command = "a command of more than sixteen bytes";
    write_text(first.get(), command);
    first.reset();
    bench.turns();
    std::string got;
    SUBCASE("read in time") {
        for (int i = 0; i < 6; ++i) {
            got += bench.typed();
            bench.turns();
        }
        CHECK(got == command);
    }
    SUBCASE("overtaken") {
        auto second = listener.connect();
        bench.turns();
        bench.send("hi");
        bench.turns();
        CHECK(read_some(second.get()) == "hi");
        CHECK(bench.typed() == command.substr(0, 16));
    }
}

TEST_CASE("a client that has shut down its sending side still gets output") {
    Listener listener;
    Bench bench(checked(Console::socket(listener.share(), {})));
    bench.console->unhold();
    auto client = listener.connect();
    write_text(client.get(), "q");
    ::shutdown(client.get(), SHUT_WR);
    bench.turns();
    CHECK(bench.typed() == "q");
    bench.send("answer");
    bench.turns();
    CHECK(read_some(client.get()) == "answer");
}

TEST_CASE("a terminal that nobody reads holds the guest up once, then no more") {
    auto [master, slave] = open_pty();
    Bench bench(checked(Console::pty(std::move(master), {0ns, 1h})));
    bench.console->unhold();
    CHECK(bench.console->reader() == ConsoleReader::kAttached);
    CHECK(bench.send_until_stuck() > (1u << 20));
    CHECK(bench.console->reader() == ConsoleReader::kAway);
    CHECK(bench.serial.dropped_output() > 0);
    size_t got = 0;
    for (int i = 0; i < 1000 && bench.console->reader() != ConsoleReader::kAttached; ++i) {
        got += read_some(slave.get()).size();
        bench.turn(1);
    }
    CHECK(got > 0);
    CHECK(bench.console->reader() == ConsoleReader::kAttached);
}

TEST_CASE("a terminal's reader is presumed there until the time is over") {
    auto [master, slave] = open_pty();
    Bench bench(checked(Console::pty(std::move(master), {1h, 1h})));
    bench.console->unhold();
    CHECK(bench.send_until_stuck() < (1u << 20));
    CHECK(bench.console->reader() == ConsoleReader::kAttached);
    CHECK(bench.console->next_wake().left() < 1h);
    CHECK(bench.serial.dropped_output() == 0);
}

TEST_CASE("a terminal without an open slave rests instead of spinning") {
    auto [master, slave] = open_pty();
    slave.reset();
    Bench bench(checked(Console::pty(std::move(master), {1h, 1h})));
    bench.console->unhold();
    bench.turns();
    CHECK(bench.console->reader() == ConsoleReader::kAway);
    std::vector<pollfd> fds;
    bench.console->collect(fds);
    CHECK(::poll(fds.data(), fds.size(), 0) == 0);
}

TEST_CASE("a terminal carries input to the guest") {
    auto [master, slave] = open_pty();
    Bench bench(checked(Console::pty(std::move(master))));
    bench.console->unhold();
    write_text(slave.get(), "ls\r");
    bench.turns();
    CHECK(bench.typed() == "ls\r");
}

TEST_CASE("a client stays connected across an update and no byte is lost or doubled") {
    Listener listener;
    auto client = listener.connect();
    Bench source(checked(Console::socket(listener.share(), {})));
    source.console->unhold();
    source.turns();
    source.send("one ");
    source.turns();

    source.console->freeze_client();
    auto waiting = listener.connect(); // comes in the middle, is served by nobody before its turn
    UniqueFd handed = *liveupdate::fd::dup(source.console->client_fd());
    REQUIRE(source.console->hold(Deadline::after(1s)));
    source.send("two ");
    write_text(client.get(), "typed");
    source.turns();
    const auto saved = source.serial.save();

    Bench destination(checked(Console::socket(listener.share(), std::move(handed))));
    REQUIRE(destination.serial.load(*saved, 1));
    destination.turns();
    CHECK(read_some(client.get()) == "one ");
    destination.console->unhold();
    destination.send("three");
    destination.turns();
    CHECK(read_some(client.get()) == "two three");
    CHECK(destination.typed() == "typed");
}

TEST_CASE("a source that takes the guest back goes on with its client") {
    Listener listener;
    auto client = listener.connect();
    Bench source(checked(Console::socket(listener.share(), {})));
    source.console->unhold();
    source.turns();
    source.console->freeze_client();
    REQUIRE(source.console->hold(Deadline::never()));
    source.send("back");
    source.console->unhold();
    source.turns();
    CHECK(read_some(client.get()) == "back");
}

TEST_CASE("fds of another kind are refused with what was wanted") {
    Listener listener;
    auto pair = liveupdate::fd::socketpair(SOCK_STREAM);
    const auto memory = liveupdate::fd::memfd_create("plain", 0);
    const auto dup = [](const UniqueFd& fd) { return *liveupdate::fd::dup(fd.get()); };
    CHECK_FALSE(Console::file(dup(*memory))); // does not append
    CHECK_FALSE(Console::file(dup(pair->first)));
    CHECK_FALSE(Console::file({}));
    CHECK_FALSE(Console::pty(dup(*memory)));
    CHECK_FALSE(Console::pty(UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC))));
    CHECK_FALSE(Console::socket(dup(pair->first), {}));
    CHECK_FALSE(Console::socket(dup(*memory), {}));
    CHECK_FALSE(Console::socket(listener.share(), listener.share()));
    const auto datagram = liveupdate::fd::socketpair(SOCK_SEQPACKET);
    CHECK_FALSE(Console::socket(listener.share(), dup(datagram->first)));
}

TEST_CASE("a vCPU that writes while the loop runs and is held again and again loses nothing") {
    Listener listener;
    auto client = listener.connect();
    Bench bench(checked(Console::socket(listener.share(), {})));
    bench.console->unhold();
    while (bench.console->client_fd() < 0) // what is written before anybody is there to read it is lost
        bench.turn(5);
    constexpr int kBytes = 100'000;
    std::atomic<bool> stop = false;
    std::thread loop([&] {
        while (!stop)
            bench.turn(5);
    });
    std::thread vcpu([&] {
        for (int i = 0; i < kBytes; ++i) {
            while (!(bench.serial.read(uart::kLineStatus, 1) & uart::kTransmitHoldingEmpty))
                std::this_thread::yield();
            bench.serial.write(uart::kData, 1, static_cast<uint8_t>(i));
        }
    });
    std::string got;
    while (got.size() < kBytes) {
        const std::string more = read_some(client.get());
        got += more;
        // Only after some progress: without a pause between two holds the loop might never get its turn.
        if (!more.empty() && bench.console->hold(Deadline::after(10s))) bench.console->unhold();
    }
    vcpu.join();
    stop = true;
    bench.console->wake();
    loop.join();
    bool in_order = got.size() == kBytes;
    for (size_t i = 0; i < got.size(); ++i)
        in_order = in_order && static_cast<uint8_t>(got[i]) == (i & 0xFF);
    CHECK(in_order);
    CHECK(bench.serial.dropped_output() == 0);
}

} // namespace
} // namespace liveupdate::vmm::test
