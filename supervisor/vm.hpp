// One VM: its files, the VMM that runs it, its updates and its history. Lives on the event loop's thread;
// an update runs on a thread of its own and has the VMM to itself until it is over.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include "supervisor/config.hpp"
#include "supervisor/control_server.hpp"
#include "supervisor/guest_driver.hpp"
#include "supervisor/history.hpp"
#include "supervisor/paths.hpp"
#include "supervisor/service.hpp"
#include "systemd/event_loop.hpp"

namespace liveupdate::supervisor {

class VmSupervisor final : public ControlHandler {
public:
    VmSupervisor(systemd::EventLoop& loop, VmConfig config, Paths paths, History history, Service& service);
    ~VmSupervisor() override;

    // Adopts the VMM that still runs this guest, or starts one. `kept` is what a former supervisor has left
    // with the service manager; empty otherwise. Before the loop runs. kBusy: a VMM may run the guest and
    // cannot be adopted now; try again.
    // `restore`: start the guest that was saved there, if it has to be started.
    Result<void> start(handoff::NamedFds kept, const std::optional<RestoreRequest>& restore);
    // The control socket is there: tells the service manager so, and leaves the listening socket with it.
    void listen_on(int listener);
    // Ends the guest and then the loop: the guest is asked to power off, and given [policy] stop_timeout for
    // it. Called once more, it is not waited for any longer.
    void stop();
    // SIGHUP of a service manager, which waits for RELOADING=1 and READY=1: updates to the VMM on disk, if
    // what runs is outdated.
    void reload();

    void handle(nlohmann::json request, std::shared_ptr<ControlReply> reply) override;

private:
    enum class State { kStarting, kRunning, kUpdating, kSaving, kStopping, kStopped, kLost };
    static std::string_view word(State state);

    Result<void> launch();
    Result<void> restore(const RestoreRequest& request);
    void watch();
    void unwatch();
    void vmm_spoke();
    void guest_gone(const std::string& why);
    void guest_did(const GuestNews& news);
    void restart_guest(const std::string& why);

    nlohmann::json status();
    void begin_update(const nlohmann::json& request, std::shared_ptr<ControlReply> reply);
    Result<UpdateRequest> read_request(const nlohmann::json& request, UpdateKind kind);
    bool is_current(const UpdateRequest& request) const;
    void run_update(UpdateRequest request, std::shared_ptr<ControlReply> reply);
    void update_over(UpdateResult result, const std::shared_ptr<ControlReply>& reply);
    bool abort_update(); // of an update or a save; false: there is none

    // vm_save.cpp
    void begin_save(const nlohmann::json& request, std::shared_ptr<ControlReply> reply);
    Result<SaveRequest> read_save_request(const nlohmann::json& request) const;
    void save_over(const Result<SaveReport>& result, const std::shared_ptr<ControlReply>& reply);
    // The driver is not ours but the update thread's.
    bool driver_is_busy() const { return state_ == State::kUpdating || state_ == State::kSaving; }

    // vm_stop.cpp
    void begin_stop(const nlohmann::json& request, std::shared_ptr<ControlReply> reply);
    void stop_guest(std::chrono::milliseconds guest_time, Deadline vmm_deadline);
    void guest_ended_stopping(const GuestNews& news);
    void finish_stop(std::string_view guest, Deadline vmm_deadline);

    // vm_service.cpp
    void take_previous(handoff::NamedFds& kept);
    std::vector<handoff::FdToSend> keepsakes() const;
    void keep_for_successor();
    std::string status_line() const;
    void tell_status();
    void log_end(const UpdateRecord& record) const;
    void begin_reexec(const std::shared_ptr<ControlReply>& reply);
    void become(const std::string& program);

    systemd::EventLoop& loop_;
    Service& service_;
    VmConfig config_;
    Paths paths_;
    History history_;
    State state_ = State::kStarting;
    std::string lost_why_;

    std::unique_ptr<GuestDriver> driver_;
    RunningVmm running_;     // kept apart: an update has the driver to itself
    std::string ram_origin_; // as running_
    std::optional<OpenBinary> previous_;
    std::string previous_version_;

    std::vector<systemd::Source> vmm_sources_;

    bool adopted_ = false;
    std::optional<RestoreReport> restored_; // when this supervisor has done that
    bool lazy_ = false;                     // its RAM may still be coming
    int listener_ = -1;                     // of the control socket; borrowed
    systemd::Source status_timer_;

    std::vector<std::shared_ptr<ControlReply>> stop_replies_;
    systemd::Source stop_timer_; // active while the guest shuts down

    std::thread update_thread_;
    UniqueFd cancel_fd_;
    std::string update_id_;
    std::string update_phase_;
    bool test_faults_;
};

} // namespace liveupdate::supervisor
