#include "tests/support/net_namespace.hpp"

#include <fcntl.h>
#include <sched.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "handoff/base/fd.hpp"
#include "tests/support/command.hpp"

namespace liveupdate::tests {
namespace {

constexpr const char* kOwn = "/proc/thread-self/ns/net";

Result<void> run(const std::vector<std::string>& command) {
    const CommandResult done = run_command(command);
    if (done.status == 0) return {};
    std::string words;
    for (const auto& word : command)
        words += word + " ";
    return Error(ErrorCode::kSystem, words + "fails: " + done.err);
}

} // namespace

NetNamespace::Stay::Stay(const NetNamespace& in) : home_(::open(kOwn, O_RDONLY | O_CLOEXEC)) {
    if (!home_ || ::setns(in.fd_.get(), CLONE_NEWNET) != 0)
        std::abort(); // the host's network is not for tests
}

NetNamespace::Stay::~Stay() {
    if (::setns(home_.get(), CLONE_NEWNET) != 0) std::abort();
}

std::string NetNamespace::why_none() {
    if (run_command({"ip", "-V"}).status != 0) return "there is no ip (package iproute2)";
    auto made = make("tap0", "10.77.0.1/24");
    return made ? std::string() : "no network namespace with a tap: " + made.error().message;
}

Result<std::unique_ptr<NetNamespace>> NetNamespace::make_empty() {
    std::unique_ptr<NetNamespace> made(new NetNamespace);
    TRY_ASSIGN(const UniqueFd home, fd::open(kOwn, O_RDONLY));
    if (::unshare(CLONE_NEWNET) != 0) return Error::from_errno("unshare(CLONE_NEWNET)");
    auto own = fd::open(kOwn, O_RDONLY);
    if (::setns(home.get(), CLONE_NEWNET) != 0) std::abort();
    TRY_ASSIGN(made->fd_, std::move(own));
    const Stay stay(*made);
    TRY(run({"ip", "link", "set", "lo", "up"}));
    return made;
}

Result<std::unique_ptr<NetNamespace>> NetNamespace::make(
    const std::string& tap, const std::string& address, unsigned queues) {
    TRY_ASSIGN(std::unique_ptr<NetNamespace> made, make_empty());
    made->tap_ = tap;
    const Stay stay(*made);
    std::vector<std::string> add{"ip", "tuntap", "add", "dev", tap, "mode", "tap"};
    if (queues > 1) add.push_back("multi_queue");
    TRY(run(add));
    TRY(run({"ip", "address", "add", address, "dev", tap}));
    TRY(run({"ip", "link", "set", tap, "up"}));
    return made;
}

Result<std::unique_ptr<NetNamespace>> NetNamespace::make_multi_queue(const std::vector<std::string>& taps) {
    TRY_ASSIGN(std::unique_ptr<NetNamespace> made, make_empty());
    const Stay stay(*made);
    for (const std::string& tap : taps) {
        TRY(run({"ip", "tuntap", "add", "dev", tap, "mode", "tap", "multi_queue"}));
        TRY(run({"ip", "link", "set", tap, "up"}));
    }
    return made;
}

Result<TapCounters> NetNamespace::counters() const {
    const Stay stay(*this);
    const CommandResult shown = run_command({"ip", "-s", "-j", "link", "show", "dev", tap_});
    const auto json = nlohmann::json::parse(shown.out, nullptr, false);
    if (shown.status != 0 || !json.is_array() || json.empty() || !json[0].contains("stats64"))
        return Error(ErrorCode::kSystem, "ip -s link show " + tap_ + " tells no counters: " + shown.err);
    const auto& rx = json[0]["stats64"]["rx"];
    const auto& tx = json[0]["stats64"]["tx"];
    return TapCounters{rx.value("packets", uint64_t{0}), rx.value("errors", uint64_t{0}),
        rx.value("dropped", uint64_t{0}), tx.value("packets", uint64_t{0}), tx.value("errors", uint64_t{0}),
        tx.value("dropped", uint64_t{0})};
}

} // namespace liveupdate::tests
