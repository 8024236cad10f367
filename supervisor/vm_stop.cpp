// How a VM is stopped: the guest is asked to power off and given time for it; then its VMM ends.
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>

#include "supervisor/guest_files.hpp"
#include "supervisor/journal.hpp"
#include "supervisor/vm.hpp"

namespace liveupdate::supervisor {
namespace {

using std::chrono::milliseconds;

constexpr auto kAskTime = std::chrono::seconds(2);     // for a VMM to answer
constexpr auto kVmmEndTime = std::chrono::seconds(10); // for a VMM to end by itself
constexpr uint64_t kMostGuestMs = 3'600'000;

} // namespace

void VmSupervisor::stop() {
    const bool again = state_ == State::kStopping;
    const bool runs = state_ == State::kRunning || driver_is_busy();
    const auto guest_time = again ? milliseconds(0) : std::chrono::ceil<milliseconds>(config_.stop_timeout);
    if (runs && service_.is_being_restarted())
        log_event({EventKind::kRebooted, config_.name, "", "", "",
            "the unit is being restarted, which reboots the guest; an update without a reboot is "
            "`systemctl reload`"});
    stop_guest(guest_time, Deadline::after(kVmmEndTime));
}

void VmSupervisor::begin_stop(const nlohmann::json& request, std::shared_ptr<ControlReply> reply) {
    const bool force = request.value("force", false);
    const auto policy = std::chrono::ceil<milliseconds>(config_.stop_timeout);
    const auto asked = request.value("timeout_ms", static_cast<uint64_t>(policy.count()));
    const milliseconds wanted(std::min(asked, kMostGuestMs));
    stop_replies_.push_back(std::move(reply));
    stop_guest(force ? milliseconds(0) : wanted, Deadline::after(force ? milliseconds(0) : kVmmEndTime));
}

void VmSupervisor::stop_guest(milliseconds guest_time, Deadline vmm_deadline) {
    if (state_ == State::kStopped) return;
    const bool waiting = state_ == State::kStopping;
    if (waiting && guest_time.count() > 0) return; // the first one's time counts
    if (waiting) return finish_stop("cut", vmm_deadline);
    if (driver_is_busy()) {
        // The update has the VMM: its end comes first.
        abort_update();
        if (update_thread_.joinable()) update_thread_.join();
    }
    state_ = State::kStopping;
    service_.stopping(guest_time + kAskTime + 2 * kVmmEndTime);
    tell_status();
    if (guest_time.count() == 0 || !driver_->ask_to_end()) return finish_stop("cut", vmm_deadline);
    auto timer = loop_.add_timer(guest_time, [this] {
        spdlog::warn("{}: the guest was asked to power off and has not; its power is cut", config_.name);
        finish_stop("timed-out", Deadline::after(kVmmEndTime));
    });
    if (!timer) return finish_stop("cut", vmm_deadline);
    stop_timer_ = std::move(timer).value();
    spdlog::info("{}: the guest is asked to power off", config_.name);
    for (const auto& reply : stop_replies_)
        reply->event({{"asked_to_end", true}, {"timeout_ms", guest_time.count()}});
    // After an update nobody watches; and what came while the VMM was asked is waiting to be heard.
    loop_.post([this] {
        if (state_ != State::kStopping || driver_->running().pid == 0) return;
        unwatch();
        watch();
    });
}

// Whatever it did, it is not started again.
void VmSupervisor::guest_ended_stopping(const GuestNews& news) {
    if (news.powered_off) spdlog::info("{}: the guest has powered itself off", config_.name);
    finish_stop(news.powered_off ? "powered-off" : "cut", Deadline::after(kVmmEndTime));
}

void VmSupervisor::finish_stop(std::string_view guest, Deadline vmm_deadline) {
    if (state_ == State::kStopped) return;
    stop_timer_.reset();
    unwatch();
    driver_->end(vmm_deadline);
    if (const std::string how = driver_->how_it_ended(); !how.empty())
        spdlog::info("{}: its VMM {}", config_.name, how);
    keep_for_successor(); // nothing of this guest
    // What we made ourselves; a file with the guest's words is the user's.
    if (config_.console != ConsoleType::kFile) ::unlink(console_path(config_, paths_).c_str());
    state_ = State::kStopped;
    running_ = {};
    for (const auto& reply : stop_replies_)
        reply->finish({{"state", word(state_)}, {"guest", guest}});
    stop_replies_.clear();
    loop_.post([this] { loop_.stop(0); });
}

} // namespace liveupdate::supervisor
