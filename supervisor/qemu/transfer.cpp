#include "supervisor/qemu/transfer.hpp"

#include <poll.h>

#include <algorithm>

#include "supervisor/qemu/run_state.hpp"
#include "supervisor/qemu/state_stream.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

using nlohmann::json;

constexpr auto kAnswerTime = std::chrono::seconds(5);
constexpr auto kAskEvery = std::chrono::milliseconds(1);
constexpr int64_t kAsFastAsItGoes = int64_t{1} << 40; // bytes/s: the time is the guest's
// Bytes/s; QEMU counts it in tenths of a second, and 0 would be no limit.
constexpr int64_t kNextToNothing = 10 * 4096;

} // namespace

Result<void> set_capabilities(QemuProcess& qemu, Way way, Deadline deadline, int cancel_fd) {
    const std::pair<const char*, bool> wanted[] = {{"events", true}, {"late-block-activate", true},
        {"x-ignore-shared", way == Way::kIgnoreShared}, {"postcopy-ram", way == Way::kPostcopy},
        {"release-ram", way == Way::kPostcopy}};
    json all = json::array();
    for (const auto& [name, state] : wanted)
        all.push_back({{"capability", name}, {"state", state}});
    TRY(qemu.execute("migrate-set-capabilities", {{"capabilities", std::move(all)}}, deadline, cancel_fd));
    return {};
}

Result<void> back_to_common_mode(QemuProcess& qemu, Deadline deadline, int cancel_fd) {
    const auto set = qemu.execute("migrate-set-parameters", {{"mode", "normal"}}, deadline, cancel_fd);
    if (!set && set.error().code != ErrorCode::kRefused) return set.error(); // before 8.2 there is no other
    // Of a save whose supervisor has died; before 9.0 there is no such capability.
    const auto off = set_mapped_ram(qemu, deadline, false);
    if (!off && off.error().code != ErrorCode::kRefused) return off.error();
    return {};
}

Result<void> Transfer::set_up(Deadline deadline, int cancel_fd) {
    json parameters = {{"max-bandwidth", kAsFastAsItGoes}};
    // What crosses before the order to begin with postcopy is heard stays in the source as well, has to be
    // thrown away by the destination, and is in the way of the device state: the guest stands for as long as
    // it takes.
    if (way_ == Way::kPostcopy)
        parameters = {{"max-bandwidth", kNextToNothing}, {"max-postcopy-bandwidth", 0}};
    if (way_ == Way::kCprTransfer) parameters["mode"] = "cpr-transfer";
    TRY(source_.qemu.execute("migrate-set-parameters", std::move(parameters), deadline, cancel_fd));
    if (way_ == Way::kCprTransfer) return {}; // the destination listens from its start
    TRY(destination_.qemu.execute(
        "migrate-incoming", {{"uri", "unix:" + folder_.migration_socket()}}, deadline, cancel_fd));
    return {};
}

Result<void> Transfer::begin(Deadline deadline) {
    QmpChannel& monitor = source_.qemu.monitor();
    if (way_ == Way::kCprTransfer) {
        TRY(source_.qemu.execute("migrate", {{"channels", folder_.migration_channels()}}, deadline));
        return destination_.qemu.greet(deadline, -1);
    }
    TRY_ASSIGN(const uint64_t order,
        monitor.send("migrate", {{"uri", "unix:" + folder_.migration_socket()}}, deadline));
    if (way_ != Way::kPostcopy) {
        TRY(monitor.answer(order, deadline).context("migrate"));
        return {};
    }
    // At once: the source begins with postcopy when it next looks, a tenth of a second later at most.
    TRY_ASSIGN(const uint64_t postcopy, monitor.send("migrate-start-postcopy", nullptr, deadline));
    TRY(monitor.answer(order, deadline).context("migrate"));
    TRY(monitor.answer(postcopy, deadline).context("migrate-start-postcopy"));
    return {};
}

Result<void> Transfer::look() {
    TRY(note(source_).context("the source"));
    TRY(note(destination_).context("the destination"));
    if (way_ == Way::kCprTransfer && source_.completed && !destination_.completed)
        TRY(ask_destination().context("the destination"));
    return {};
}

bool Transfer::settle_without_source(Deadline deadline) {
    const auto whole = has_come_whole(destination_.qemu, deadline);
    if (!whole || !*whole) return false;
    source_.completed = destination_.completed = true;
    return true;
}

void Transfer::look_at_destination() {
    static_cast<void>(note(destination_));
}

// Its monitor may have been connected too late for its events.
Result<void> Transfer::ask_destination() {
    TRY_ASSIGN(const RunState state, run_state(destination_.qemu, Deadline::after(kAnswerTime)));
    destination_.completed = state.status != "inmigrate";
    return {};
}

Result<void> Transfer::note(Side& side) {
    const auto arrived = side.qemu.monitor().take_arrived();
    side.gone = !arrived && arrived.error().code == ErrorCode::kPeerGone;
    auto& events = side.qemu.monitor().events();
    for (auto next = events.begin(); next != events.end();) {
        // An end of the guest stays, for whoever listens after the update.
        if (next->name == "SHUTDOWN" && !loaded())
            return Error(ErrorCode::kRefused, "the guest ended while it was being updated");
        if (next->name == "SHUTDOWN") {
            ++next;
            continue;
        }
        const QmpEvent event = std::move(*next);
        next = events.erase(next);
        const std::string status = word_in(event.data, "status");
        if (event.name == "STOP" && &side == &source_) stopped_us_ = event.unix_us;
        if (event.name == "RESUME" && &side == &destination_) resumed_us_ = event.unix_us;
        if (event.name != "MIGRATION") continue;
        if (status == "completed") side.completed = true;
        if (status.starts_with("postcopy")) side.in_postcopy = true;
        if (status == "failed" || status == "cancelled" || status == "postcopy-paused")
            return Error(ErrorCode::kRefused, "QEMU's migration is " + status);
    }
    // One that has done its part is not needed any more.
    if (!arrived && !side.completed) return arrived.error();
    return {};
}

void Transfer::wait(Deadline deadline) const {
    if (way_ == Way::kCprTransfer) deadline = deadline.earlier(Deadline::after(kAskEvery));
    pollfd polled[] = {
        {source_.qemu.monitor().fd(), POLLIN, 0}, {destination_.qemu.monitor().fd(), POLLIN, 0}};
    ::poll(polled, 2, deadline.poll_ms());
}

// With postcopy the destination says so when it has the whole of the device state, which the source sends
// after it has let go of the guest's disks.
bool Transfer::loaded() const {
    return finished() || (way_ == Way::kPostcopy && source_.in_postcopy && destination_.in_postcopy);
}

} // namespace liveupdate::supervisor::qemu
