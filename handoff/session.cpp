#include "handoff/session.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "handoff/base/fd.hpp"
#include "handoff/base/words.hpp"
#include "handoff/destination_session.hpp"
#include "handoff/negotiation.hpp"
#include "handoff/source_session.hpp"

namespace liveupdate::handoff {
namespace {

constexpr auto kSendTime = std::chrono::seconds(5);
constexpr size_t kMostWords = 4096; // of a failure

proto::Message failure(const Error& error) {
    proto::Message message;
    message.mutable_failure()->set_code(std::string(to_string(error.code)));
    message.mutable_failure()->set_message(printable(error.message, kMostWords));
    return message;
}

} // namespace

class VmmSession::State {
public:
    State(UniqueFd listening_socket, Vmm& vmm) : listening_(std::move(listening_socket)), vmm_(vmm) {}

    Result<int> run() {
        for (;;) {
            if (done_) return exit_status_;
            wait();
        }
    }

private:
    void wait() {
        report_events();
        std::vector<pollfd> polled;
        // One supervisor at a time: the next one waits in the backlog.
        const bool has_supervisor = static_cast<bool>(channel_);
        polled.push_back(
            has_supervisor ? pollfd{channel_.fd(), POLLIN, 0} : pollfd{listening_.get(), POLLIN, 0});
        Deadline wake = Deadline::never();
        std::vector<pollfd> guests;
        // A guest that runs elsewhere has taken its connections along.
        const bool has_guest = source_ && !source_->lost_guest();
        if (has_guest) {
            source_->guest().collect(guests);
            wake = source_->guest().wake_at();
        }
        const size_t own = polled.size();
        polled.insert(polled.end(), guests.begin(), guests.end());
        timespec rest{};
        if (::ppoll(polled.data(), polled.size(), wake.ppoll_time(rest), nullptr) < 0 && errno != EINTR) {
            done_ = true;
            exit_status_ = 70; // EX_SOFTWARE: poll refuses our own descriptors
            return;
        }
        if (has_guest) {
            guests.assign(polled.begin() + static_cast<std::ptrdiff_t>(own), polled.end());
            source_->guest().dispatch(guests);
        }
        if (polled[0].revents == 0) return;
        if (!has_supervisor)
            accept_supervisor();
        else if (channel_)
            serve_one();
    }

    void accept_supervisor() {
        UniqueFd socket(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC));
        if (!socket) return;
        ucred who{};
        socklen_t size = sizeof(who);
        if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &who, &size) < 0) return;
        if (who.uid != 0 && who.uid != ::geteuid()) return; // not ours: closed without a word
        channel_ = Channel(std::move(socket));
        greeted_ = false;
    }

    void supervisor_gone() {
        channel_.close();
        if (source_) source_->supervisor_gone();
        if (destination_) {
            // Armed or not, nobody is left who could start a switchover that has not begun: serve_one() waits
            // for one that has.
            destination_.reset();
        }
        if (!source_ || source_->lost_guest()) done_ = true;
    }

    void report_events() {
        if (!source_ || source_->lost_guest() || !channel_ || !greeted_) return;
        for (;;) {
            // Kept until it has been told: the next supervisor hears of it when this one has just gone.
            if (!event_) event_ = source_->guest().take_event();
            if (!event_) return;
            proto::Message message;
            *message.mutable_guest_event() = *event_;
            if (!channel_.send(std::move(message), Deadline::after(kSendTime))) return supervisor_gone();
            event_.reset();
        }
    }

    void serve_one() {
        auto received = channel_.receive(Deadline::after(kSendTime));
        if (!received) return refuse_packet(received.error());
        Reply reply = answer(*received);
        for (auto& message : reply.messages) {
            auto sent = channel_.send(std::move(message), reply.fds, Deadline::after(kSendTime));
            reply.fds.clear();
            if (!sent) return supervisor_gone();
        }
        if (reply.then) reply.then();
    }

    void refuse_packet(const Error& why) {
        if (why.code != ErrorCode::kProtocol || !channel_.send(failure(why), Deadline::after(kSendTime)))
            supervisor_gone();
    }

    struct Reply {
        std::vector<proto::Message> messages; // none: nothing is said
        std::vector<FdToSend> fds;            // go with the first message
        std::function<void()> then;
    };

    static Reply one(proto::Message message) {
        Reply reply;
        reply.messages.push_back(std::move(message));
        return reply;
    }
    static Reply one(Result<proto::Message> message) {
        return one(message ? std::move(message).value() : failure(message.error()));
    }

    Reply answer(Received& received) {
        proto::Message& m = received.message;
        if (!greeted_ && !m.has_hello())
            return one(failure({ErrorCode::kProtocol, kind_of(m) + " came before Hello"}));
        switch (m.body_case()) {
        case proto::Message::kHello:
            return one(greet(m.hello()));
        case proto::Message::kLaunch:
            return one(launch(m.launch(), received.fds));
        case proto::Message::kPrepare:
            return one(prepare(m.prepare(), received.fds));
        case proto::Message::kStop:
            return stop();
        case proto::Message::kRelease:
            return release();
        case proto::Message::kAdopt:
            return adopt();
        case proto::Message::kAbandon:
            return abandon(m);
        default:
            break;
        }
        if (destination_ && !source_) return for_destination(m);
        if (source_ && source_->lost_guest()) return one(guest_is_gone(m));
        if (source_) return for_source(m, received);
        return one(failure({ErrorCode::kProtocol, kind_of(m) + " needs a guest, and there is none here"}));
    }

    Result<proto::Message> greet(const proto::Hello& hello) {
        TRY(agree_on_protocol(
            kOldestProtocol, kNewestProtocol, hello.oldest_protocol(), hello.newest_protocol()));
        greeted_ = true;
        proto::Message message;
        auto& offer = *message.mutable_offer();
        offer = vmm_.offer();
        offer.set_oldest_protocol(kOldestProtocol);
        offer.set_newest_protocol(kNewestProtocol);
        offer.set_pid(static_cast<uint32_t>(::getpid()));
        offer.set_participant(source_ && !source_->lost_guest() ? source_->me() : 0);
        return message;
    }

    Result<proto::Message> launch(const proto::Launch& order, NamedFds& fds) {
        if (source_ || destination_) return Error(ErrorCode::kProtocol, "this VMM has a guest already");
        auto source = SourceSession::launch(vmm_, order, fds);
        if (!source) return std::move(source).error();
        source_ = std::move(source).value();
        proto::Message message;
        message.mutable_launched();
        return message;
    }

    Result<proto::Message> prepare(const proto::Prepare& order, NamedFds& fds) {
        if (source_ || destination_) return Error(ErrorCode::kProtocol, "this VMM has a guest already");
        destination_ = std::make_unique<DestinationSession>(vmm_);
        auto prepared = destination_->prepare(order, fds);
        if (!prepared) destination_.reset();
        return prepared;
    }

    Reply for_destination(const proto::Message& m) {
        if (m.has_load_trial()) return one(destination_->load_trial());
        if (!m.has_arm())
            return one(failure({ErrorCode::kProtocol, kind_of(m) + " is not for a destination"}));
        Reply reply = one(destination_->arm(m.arm()));
        if (reply.messages.front().has_armed()) reply.then = [this] { await_switchover(); };
        return reply;
    }

    // Blocks until the baton has moved, one way or the other.
    void await_switchover() {
        proto::Message message;
        *message.mutable_switched() = destination_->await_switchover();
        if (message.switched().committed()) source_ = destination_->become_source();
        const bool committed = message.switched().committed();
        destination_.reset();
        if (!channel_.send(std::move(message), Deadline::after(kSendTime))) supervisor_gone();
        if (!committed) done_ = true; // one process serves one attempt
    }

    Reply for_source(const proto::Message& m, Received& received) {
        switch (m.body_case()) {
        case proto::Message::kDescribe: {
            Reply reply;
            reply.messages.push_back(unwrap(source_->describe(m.describe(), received.sender.pid, reply.fds)));
            return reply;
        }
        case proto::Message::kSaveTrial:
            return one(source_->save_trial(m.save_trial(), received.fds));
        case proto::Message::kTrackWrites:
            return one(source_->track_writes(m.track_writes(), received.fds));
        case proto::Message::kSwitchover:
            return one(source_->switchover(m.switchover(), received.fds));
        case proto::Message::kQuery: {
            proto::Message message;
            *message.mutable_status() = source_->guest().status();
            return one(std::move(message));
        }
        case proto::Message::kAskToEnd: {
            proto::Message message;
            message.mutable_asked_to_end()->set_heard(source_->guest().ask_to_end());
            return one(std::move(message));
        }
        default:
            return one(failure({ErrorCode::kProtocol, kind_of(m) + " is not for a source"}));
        }
    }

    static proto::Message unwrap(Result<proto::Message> result) {
        return result ? std::move(result).value() : failure(result.error());
    }

    Reply adopt() {
        if (!source_ || source_->lost_guest())
            return one(failure({ErrorCode::kNotFound, "no guest runs in this VMM"}));
        Reply reply;
        reply.messages.push_back(source_->adopted());
        reply.fds = source_->adoption_fds();
        return reply;
    }

    static proto::Message guest_is_gone(const proto::Message& m) {
        return failure(
            {ErrorCode::kNotFound, kind_of(m) + " needs the guest, which runs in another VMM now"});
    }

    Reply abandon(const proto::Message& m) {
        if (source_ && source_->lost_guest()) return one(guest_is_gone(m));
        proto::Message message;
        message.mutable_abandoned();
        Reply reply = one(std::move(message));
        if (source_)
            source_->abandon();
        else
            reply.then = [this] {
                destination_.reset();
                done_ = true;
            };
        return reply;
    }

    Reply stop() {
        proto::Message message;
        message.mutable_abandoned();
        Reply reply = one(std::move(message));
        reply.then = [this] {
            source_.reset();
            destination_.reset();
            done_ = true;
        };
        return reply;
    }

    Reply release() {
        if (!source_)
            return one(
                failure({ErrorCode::kProtocol, "release is for a source, and there is no guest here"}));
        if (!source_->lost_guest())
            return one(failure(
                {ErrorCode::kProtocol, "release is for a source whose guest has gone; it runs here"}));
        source_->let_go();
        source_.reset();
        done_ = true;
        return {};
    }

    UniqueFd listening_;
    Vmm& vmm_;
    Channel channel_;
    bool greeted_ = false;                   // on this channel
    std::optional<proto::GuestEvent> event_; // not told yet
    std::unique_ptr<SourceSession> source_;
    std::unique_ptr<DestinationSession> destination_;
    bool done_ = false;
    int exit_status_ = 0;
};

VmmSession::VmmSession(UniqueFd listening_socket, Vmm& vmm)
    : state_(std::make_unique<State>(std::move(listening_socket), vmm)) {}
VmmSession::~VmmSession() = default;
Result<int> VmmSession::run() {
    return state_->run();
}

} // namespace liveupdate::handoff
