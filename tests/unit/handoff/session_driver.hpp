// A VmmSession in a thread of its own around a guest that is only two numbers, and a test in the place of the
// supervisor at the other end of its socket.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "handoff/channel.hpp"
#include "handoff/guest.hpp"

namespace liveupdate::handoff {

// What a test steers and sees of the guests of one VMM. The session's threads use it too.
struct Script {
    std::atomic<bool> fail_launch{false};
    std::atomic<bool> fail_describe{false};
    std::atomic<bool> fail_save{false};       // with one section put
    std::atomic<bool> save_too_little{false}; // says that all is well with one section put
    std::atomic<bool> fail_prepare{false};
    std::atomic<bool> fail_rehearse{false};
    std::atomic<bool> fail_load{false};
    std::atomic<bool> hold_load{false};    // loading does not begin while it is set
    std::atomic<bool> hold_session{false}; // the session thread stands still while it is set

    std::atomic<uint64_t> counter{0}; // the guest's state
    std::atomic<int> saves{0};
    std::atomic<int> resumes{0};
    std::atomic<int> updates_over{0};
    std::atomic<int> let_go{0};
    std::atomic<int> dispatches{0};
    std::atomic<bool> listens{false}; // to being asked to end
    std::atomic<int> asked_to_end{0};
    std::atomic<bool> session_held{false}; // by hold_session
    std::atomic<int> takes{0};             // of the baton, by the loading thread

    void raise(proto::GuestEvent event);
    std::optional<proto::GuestEvent> take_event();

private:
    std::mutex mutex_;
    std::optional<proto::GuestEvent> event_;
};

class ScriptedVmm final : public Vmm {
public:
    ScriptedVmm();
    proto::Offer offer() const override;
    Result<std::unique_ptr<SourceGuest>> launch(LaunchOrder order) override;
    std::unique_ptr<DestinationGuest> destination() override;

    Script script;
    UniqueFd doorbell; // an eventfd that the guest wants watched
};

// What the guest consists of, as a supervisor has it.
struct GuestFilesForTest {
    GuestFilesForTest();
    proto::Manifest manifest() const;
    std::vector<FdToSend> fds() const;
    std::vector<FdToSend> fds_with(const UniqueFd& transfer) const;

    UniqueFd ram;
    UniqueFd baton_fd;
    Baton baton;
};

class SessionDriver {
public:
    SessionDriver();
    ~SessionDriver(); // stops the session, whatever it is doing
    SessionDriver(const SessionDriver&) = delete;
    SessionDriver& operator=(const SessionDriver&) = delete;

    Script& script() { return vmm_.script; }
    const UniqueFd& doorbell() const { return vmm_.doorbell; }
    Channel& channel() { return channel_; }

    // A new connection in the place of the former one, without a Hello.
    void connect();
    void disconnect() { channel_.close(); }
    void send(proto::Message message, const std::vector<FdToSend>& fds = {});
    proto::Message receive();
    proto::Message ask(proto::Message message, const std::vector<FdToSend>& fds = {});
    // The words of the Failure that must be the answer.
    std::string refusal_of(proto::Message message, const std::vector<FdToSend>& fds = {});

    proto::Offer greet(); // connects first when it has to
    void launch(const GuestFilesForTest& files, Participant me);
    // The status that run() returned; waits for it.
    int exit_status();

private:
    std::string folder_;
    std::string socket_;
    ScriptedVmm vmm_;
    Channel channel_;
    std::atomic<int> status_{-1};
    std::thread thread_;
};

proto::Message hello_message();
proto::Message launch_message(const GuestFilesForTest& files, Participant me);
// Every kind of message there is, with an empty body.
std::vector<proto::Message> one_of_each_kind();
// Waits for what another thread is about to do; false after a long while.
bool comes_true(const std::function<bool()>& condition);

} // namespace liveupdate::handoff
