// A network card on a real tap under updates: each packet for the guest is answered exactly once and in
// order. The guest's driver works in ring 3, so that it keeps up where ring 0 is interpreted.
// LIVEUPDATE_TEST_UPDATES: how many updates (10).
#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <thread>

#include "tests/integration/checks.hpp"
#include "tests/linux/pattern.hpp"
#include "tests/support/net_namespace.hpp"
#include "tests/support/pinger.hpp"

namespace liveupdate::tests {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using ::tests::guests::NetworkReport;
using ::tests::guests::read_field;
using ::tests::guests::write_field;
using ULL = unsigned long long;

constexpr const char* kTap = "tap0";
constexpr const char* kHostAddress = "10.77.0.1/24"; // kNetworkHost
constexpr const char* kGuestAddress = "10.77.0.2";   // kNetworkGuest
constexpr uint64_t kPingHz = 1000;
constexpr uint64_t kPingWindow = 500; // a tap's queue holds 1000 packets
constexpr auto kPatience = 10s;       // for what is on its way

#define NEEDS_NETWORK()                                                                                      \
    NEEDS_KVM();                                                                                             \
    if (const std::string why = NetNamespace::why_none(); !why.empty()) {                                    \
        std::printf("SKIPPED: %s\n", why.c_str());                                                           \
        return;                                                                                              \
    }

unsigned updates() {
    return std::max(2u, number_from("LIVEUPDATE_TEST_UPDATES", 10));
}

std::unique_ptr<NetNamespace> make_network() {
    auto made = NetNamespace::make(kTap, kHostAddress);
    REQUIRE_MESSAGE(made, made.error().message);
    return std::move(*made);
}

std::unique_ptr<LiveVm> started_in(const NetNamespace& network, const std::string& cmdline = "") {
    const NetNamespace::Stay stay(network);
    LiveVmOptions options;
    options.guest = "network.elf";
    options.cmdline = cmdline;
    options.extra_toml = std::string("[[net]]\ntap = \"") + kTap + "\"\n";
    auto vm = started(options);
    REQUIRE(read_field(vm->report().header.network.up) == 1);
    return vm;
}

const NetworkReport& network_of(const LiveVm& vm) {
    return vm.report().header.network;
}

// Pings the guest from its beginning to finish(), from a thread of its own.
class Pings {
public:
    explicit Pings(const NetNamespace& network) : pinger_(kGuestAddress, kPingHz, kPingWindow) {
        const NetNamespace::Stay stay(network);
        REQUIRE(pinger_.open());
        thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
    }
    // Waits for the answers that are still on their way.
    const Pinger::Figures& finish() {
        thread_.request_stop();
        thread_.join();
        return pinger_.figures();
    }
    uint64_t answered() const { return answered_.load(); }

private:
    void run(const std::stop_token& stop) {
        pinger_.turn(true);
        while (!stop.stop_requested())
            look(pinger_.next_ns());
        pinger_.turn(false);
        const auto end = Clock::now() + kPatience;
        while (!pinger_.all_answered() && Clock::now() < end)
            look(1'000'000);
        for (const auto quiet = Clock::now() + 50ms; Clock::now() < quiet;) // what would come twice
            look(1'000'000);
    }
    void look(uint64_t wait_ns) {
        pollfd polled{pinger_.fd(), POLLIN, 0};
        const timespec wait{0, static_cast<long>(wait_ns)};
        ::ppoll(&polled, 1, &wait, nullptr);
        pinger_.receive_all();
        pinger_.send_due();
        answered_.store(pinger_.figures().answered);
    }

    Pinger pinger_;
    std::atomic<uint64_t> answered_{0};
    std::jthread thread_;
};

// Datagrams with a number in each, a burst at a time, as fast as they can be sent; the next burst follows
// when all of it has come back.
class Bursts {
public:
    static constexpr uint64_t kBurst = 256; // a tap's queue holds it
    struct Figures {
        uint64_t sent = 0, returned = 0, out_of_order = 0, damaged = 0;
    };

    explicit Bursts(const NetNamespace& network) {
        const NetNamespace::Stay stay(network);
        fd_.reset(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
        const int bytes = 8 << 20; // the burst as the kernel counts it
        REQUIRE(::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes) == 0);
        REQUIRE(::setsockopt(fd_.get(), SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes) == 0);
        sockaddr_in guest{};
        guest.sin_family = AF_INET;
        guest.sin_port = htons(::tests::guests::kNetworkEchoPort);
        ::inet_pton(AF_INET, kGuestAddress, &guest.sin_addr);
        REQUIRE(::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&guest), sizeof guest) == 0);
        thread_ = std::jthread([this](const std::stop_token& stop) {
            burst(1); // until the guest's address is known, the kernel keeps but a few packets for it
            while (!stop.stop_requested() && figures_.returned == figures_.sent)
                burst(kBurst);
            look(50); // what would come twice
        });
    }
    const Figures& finish() {
        thread_.request_stop();
        thread_.join();
        return figures_;
    }
    uint64_t returned() const { return returned_.load(); }

private:
    static constexpr size_t kMostBytes = 1472;
    using Datagram = std::array<uint8_t, kMostBytes>;
    // From 8 bytes to what fits into a packet.
    static std::span<uint8_t> content(Datagram& storage, uint64_t number) {
        const std::span bytes(storage.data(), 8 + linux_guest::mix(number) % (kMostBytes - 7));
        linux_guest::fill_stream(bytes, number, 0);
        std::memcpy(bytes.data(), &number, sizeof number);
        return bytes;
    }
    void burst(uint64_t datagrams) {
        Datagram storage{};
        for (uint64_t i = 0; i < datagrams; ++i) {
            const auto bytes = content(storage, figures_.sent);
            if (::send(fd_.get(), bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()))
                ++figures_.sent;
        }
        for (const auto end = Clock::now() + kPatience;
             figures_.returned < figures_.sent && Clock::now() < end;)
            look(100);
    }
    void look(int wait_ms) {
        pollfd polled{fd_.get(), POLLIN, 0};
        ::poll(&polled, 1, wait_ms);
        Datagram got{}, expected{};
        for (;;) {
            const ssize_t n = ::recv(fd_.get(), got.data(), got.size(), MSG_DONTWAIT);
            if (n < 0) return;
            const auto bytes = static_cast<size_t>(n);
            uint64_t number = 0;
            if (bytes >= sizeof number) std::memcpy(&number, got.data(), sizeof number);
            const auto should = content(expected, number);
            if (bytes != should.size() || !std::equal(should.begin(), should.end(), got.begin()))
                ++figures_.damaged;
            else if (number != figures_.returned)
                ++figures_.out_of_order; // also one that comes twice, and one whose predecessor is lost
            ++figures_.returned;
            returned_.store(figures_.returned);
        }
    }

    UniqueFd fd_;
    Figures figures_;
    std::atomic<uint64_t> returned_{0};
    std::jthread thread_;
};

void check_tap(const NetNamespace& network) {
    const auto tap = network.counters();
    REQUIRE_MESSAGE(tap, tap.error().message);
    CHECK(tap->receive_errors + tap->receive_dropped + tap->send_errors == 0);
    CHECK(tap->send_dropped == 0); // the tap's queue was full, or nobody had it
}

// All of it, and the guest has answered no more than that.
void check_pings(const Pinger::Figures& seen, const LiveVm& vm) {
    CHECK(seen.sent > 0);
    CHECK(seen.answered == seen.sent);
    CHECK(seen.doubled == 0);
    CHECK(seen.reordered == 0);
    CHECK(seen.damaged == 0);
    CHECK(read_field(network_of(vm).echoes) == seen.sent);
}

template <typename Update>
void ping_through(LiveVm& vm, const NetNamespace& network, const char* what, Update update) {
    const auto began = Clock::now();
    Pings pings(network);
    REQUIRE(LiveVm::eventually([&] { return pings.answered() > 100; }));
    update();
    const uint64_t before = pings.answered();
    CHECK(LiveVm::eventually([&] { return pings.answered() > before + 100; }));
    const double seconds = std::chrono::duration<double>(Clock::now() - began).count();
    const Pinger::Figures& seen = pings.finish();
    check_pings(seen, vm);
    std::printf("%s: %llu pings of %.0f a second, %llu answered, %llu held back, slowest %llu us\n", what,
        ULL{seen.sent}, static_cast<double>(seen.sent) / seconds, ULL{seen.answered}, ULL{seen.held_back},
        ULL{seen.slowest_us});
}

TEST_CASE("1000 pings a second go through updates, each answered once and in order") {
    NEEDS_NETWORK();
    const auto network = make_network();
    const auto vm = started_in(*network);
    const unsigned count = updates();
    ping_through(*vm, *network, (std::to_string(count) + " updates").c_str(), [&] {
        const Holdings before = (update_in_turn(*vm, 0, 2), holdings_at_rest(*vm));
        update_in_turn(*vm, 2, count - 2);
        if (count % 2 == 0) check_nothing_leaked(*vm, before);
    });
    check_sound(*vm, 1);
    check_tap(*network);
}

TEST_CASE("1000 pings a second go through updates that fail and are taken back") {
    NEEDS_NETWORK();
    using supervisor::Outcome;
    const auto network = make_network();
    const auto vm = started_in(*network);
    const auto fail = [&](unsigned n, const char* phase, const char* action) {
        const auto record = vm->update(
            turn(n), {{"fault", {{"phase", phase}, {"victim", "destination"}, {"action", action}}}});
        REQUIRE_MESSAGE(record, record.error().message);
        CHECK_MESSAGE((record->outcome == Outcome::kAbandoned || record->outcome == Outcome::kRolledBack),
            to_string(record->outcome), ": ", record->reason);
    };
    ping_through(*vm, *network, "updates that fail, and rollbacks", [&] {
        for (unsigned n = 0; n < std::max(1u, updates() / 5); ++n) {
            for (const char* phase : {"rehearsing", "transferring", "committing"})
                for (const char* action : {"fail", "kill"})
                    fail(n, phase, action);
            update_in_turn(*vm, n, 1);
            const auto back = vm->call({{"command", "update"}, {"kind", "rollback"}});
            REQUIRE_MESSAGE(back, back.error().message);
            REQUIRE_MESSAGE(back->value("outcome", "") == "completed", back->dump());
            update_in_turn(*vm, n, 1);
        }
    });
    check_sound(*vm, 1);
    check_tap(*network);
}

TEST_CASE("bursts of datagrams go through updates, each sent back once and in order") {
    NEEDS_NETWORK();
    const auto network = make_network();
    const auto vm = started_in(*network);
    Bursts bursts(*network);
    for (unsigned n = 0; n < updates(); ++n) {
        const uint64_t before = bursts.returned();
        update_in_turn(*vm, n, 1);
        REQUIRE(LiveVm::eventually([&] { return bursts.returned() > before + Bursts::kBurst; }));
    }
    const Bursts::Figures& seen = bursts.finish();
    CHECK(seen.returned == seen.sent);
    CHECK(seen.out_of_order == 0);
    CHECK(seen.damaged == 0);
    CHECK(read_field(network_of(*vm).datagrams) == seen.sent);
    check_sound(*vm, 1);
    check_tap(*network);
    std::printf("%u updates: %llu datagrams in bursts of %llu, %llu sent back\n", updates(), ULL{seen.sent},
        ULL{Bursts::kBurst}, ULL{seen.returned});
}

TEST_CASE("64 requests of the guest's own are in flight through updates, each answered once and in order") {
    NEEDS_NETWORK();
    const auto network = make_network();
    const auto vm = started_in(*network, "pump=1 bytes=1472");
    const NetworkReport& seen = network_of(*vm);
    REQUIRE(LiveVm::eventually([&] { return read_field(seen.answers) > 1000; }));
    for (unsigned n = 0; n < updates(); ++n) {
        const uint64_t before = read_field(seen.answers);
        update_in_turn(*vm, n, 1);
        REQUIRE(LiveVm::eventually([&] { return read_field(seen.answers) > before + 1000; }));
    }
    write_field(vm->writable_report().header.go, 1);
    CHECK(LiveVm::eventually([&] { return read_field(seen.in_flight) == 0; }));
    CHECK(read_field(seen.answers) == read_field(seen.requests));
    CHECK(read_field(seen.reordered) == 0);
    check_sound(*vm, 1);
    check_tap(*network);
    std::printf("%u updates: %llu requests of the guest's own\n", updates(), ULL{read_field(seen.requests)});
}

} // namespace
} // namespace liveupdate::tests
