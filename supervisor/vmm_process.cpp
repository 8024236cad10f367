#include "supervisor/vmm_process.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "handoff/base/fd.hpp"
#include "handoff/negotiation.hpp"
#include "liveupdate_version.hpp"

namespace liveupdate::supervisor {
namespace {

constexpr int kChildSessionFd = 3;
constexpr size_t kLastWords = 2048;
constexpr size_t kMostEvents = 64; // that wait to be served
constexpr auto kSendTime = std::chrono::seconds(5);

ErrorCode code_from(const std::string& word) {
    for (const ErrorCode code : {ErrorCode::kInternal, ErrorCode::kSystem, ErrorCode::kTimeout,
             ErrorCode::kPeerGone, ErrorCode::kProtocol, ErrorCode::kRefused, ErrorCode::kInvalid,
             ErrorCode::kUnsupported, ErrorCode::kAborted, ErrorCode::kNotFound, ErrorCode::kBusy})
        if (to_string(code) == word) return code;
    return ErrorCode::kProtocol;
}

} // namespace

VmmProcess& VmmProcess::operator=(VmmProcess&& other) noexcept {
    if (this == &other) return *this;
    this->~VmmProcess();
    return *new (this) VmmProcess(std::move(other));
}

VmmProcess::~VmmProcess() {
    kill();
}

Result<void> VmmProcess::start(const std::string& socket_path) {
    TRY_ASSIGN(const UniqueFd listening, fd::unix_listen(socket_path, SOCK_SEQPACKET, 4));
    socket_path_ = socket_path;
    TRY_ASSIGN(session_file_, fd::open(socket_path, O_PATH));
    TRY_ASSIGN(process_, ChildProcess::spawn(binary_, {"--session-fd", std::to_string(kChildSessionFd)},
                             {{listening.get(), kChildSessionFd}}));
    return {};
}

Result<VmmProcess> VmmProcess::spawn(const OpenBinary& binary, handoff::Participant participant,
    const std::string& socket_path, Deadline deadline, int cancel_fd) {
    VmmProcess process;
    process.binary_.info = binary.info;
    TRY_ASSIGN(process.binary_.file, fd::dup(binary.file.get()));
    process.participant_ = participant;
    TRY(process.start(socket_path));
    auto socket = fd::unix_connect(socket_path, SOCK_SEQPACKET);
    if (!socket) return process.gone().context(binary.info.path); // nobody but the process could listen there
    process.channel_ = handoff::Channel(std::move(socket).value());
    auto greeted = process.greet(deadline, cancel_fd);
    if (!greeted) {
        Error error = std::move(greeted).error();
        if (error.code == ErrorCode::kTimeout)
            error.message = "it did not answer as a VMM within the time limit";
        return std::move(error).context(binary.info.path);
    }
    return process;
}

Result<VmmProcess> VmmProcess::connect(const std::string& socket_path, Deadline deadline) {
    VmmProcess process;
    process.socket_path_ = socket_path;
    auto socket = fd::unix_connect(socket_path, SOCK_SEQPACKET);
    if (!socket) return Error(ErrorCode::kNotFound, socket.error().message);
    TRY_ASSIGN(process.session_file_, fd::open(socket_path, O_PATH));
    process.channel_ = handoff::Channel(std::move(socket).value());
    handoff::proto::Message hello;
    hello.mutable_hello()->set_oldest_protocol(handoff::kOldestProtocol);
    hello.mutable_hello()->set_newest_protocol(handoff::kNewestProtocol);
    hello.mutable_hello()->set_supervisor_version(std::string(kVersion));
    TRY(process.channel_.send(std::move(hello), deadline));
    TRY_ASSIGN(const handoff::Received answer, process.channel_.receive(deadline));
    if (!answer.message.has_offer())
        return Error(ErrorCode::kProtocol,
            socket_path + ": the answer to Hello is " + handoff::kind_of(answer.message));
    // The kernel names the sender; the session that is still open proves that the pid has not been reused.
    TRY_ASSIGN(process.process_, ChildProcess::find(answer.sender.pid));
    process.offer_ = answer.message.offer();
    process.participant_ = static_cast<handoff::Participant>(process.offer_.participant());
    auto binary = OpenBinary::of_process(process.pid());
    if (!binary) {
        process.forget(); // it may run the guest
        return std::move(binary).error();
    }
    process.binary_ = std::move(binary).value();
    return process;
}

Result<void> VmmProcess::greet(Deadline deadline, int cancel_fd) {
    handoff::proto::Message hello;
    hello.mutable_hello()->set_oldest_protocol(handoff::kOldestProtocol);
    hello.mutable_hello()->set_newest_protocol(handoff::kNewestProtocol);
    hello.mutable_hello()->set_supervisor_version(std::string(kVersion));
    TRY_ASSIGN(const handoff::Received answer,
        request(std::move(hello), {}, handoff::proto::Message::kOffer, deadline, cancel_fd));
    if (answer.sender.pid != pid())
        return Error(ErrorCode::kProtocol, "somebody else than the started process answers");
    offer_ = answer.message.offer();
    TRY(handoff::agree_on_protocol(handoff::kOldestProtocol, handoff::kNewestProtocol,
        offer_.oldest_protocol(), offer_.newest_protocol()));
    return {};
}

Error VmmProcess::gone() {
    // The session ends a moment before the process does.
    process_.await_end(Deadline::after(std::chrono::seconds(1)));
    const std::string& ended = process_.how_it_ended();
    std::string text = ended.empty() ? "the VMM has closed its session" : "the VMM " + ended;
    if (const std::string words = last_words(); !words.empty()) text += "; its last words: " + words;
    return {ErrorCode::kPeerGone, text};
}

// A guest has few events, so many are a VMM that wants to fill our memory.
Result<void> VmmProcess::keep(const handoff::proto::GuestEvent& event) {
    if (events_.size() >= kMostEvents)
        return Error(ErrorCode::kProtocol, "the VMM floods its supervisor with guest events");
    events_.push_back(event);
    return {};
}

Result<handoff::Received> VmmProcess::await(
    handoff::proto::Message::BodyCase wanted, Deadline deadline, int cancel_fd) {
    for (;;) {
        auto received = channel_.receive(deadline, cancel_fd);
        if (!received && received.error().code == ErrorCode::kPeerGone) return gone();
        if (!received) return received;
        const auto& message = received->message;
        if (message.has_guest_event()) {
            TRY(keep(message.guest_event()));
            continue;
        }
        if (message.has_failure())
            return Error(
                code_from(message.failure().code()), printable_end(message.failure().message(), kLastWords));
        if (message.body_case() != wanted)
            return Error(ErrorCode::kProtocol, "the VMM answered with " + handoff::kind_of(message));
        return received;
    }
}

Result<handoff::Received> VmmProcess::request(handoff::proto::Message message,
    const std::vector<handoff::FdToSend>& fds, handoff::proto::Message::BodyCase wanted, Deadline deadline,
    int cancel_fd) {
    TRY(send(std::move(message), fds, deadline));
    return await(wanted, deadline, cancel_fd);
}

Result<void> VmmProcess::send(
    handoff::proto::Message message, const std::vector<handoff::FdToSend>& fds, Deadline deadline) {
    auto sent = channel_.send(std::move(message), fds, deadline);
    if (!sent && sent.error().code == ErrorCode::kPeerGone) return gone();
    return sent;
}

Result<void> VmmProcess::tell(handoff::proto::Message message) {
    return channel_.send(std::move(message), Deadline::after(kSendTime));
}

bool VmmProcess::drain_events() {
    for (;;) {
        if (events_.size() >= kMostEvents) return alive(); // the rest when these have been served
        pollfd polled{channel_.fd(), POLLIN, 0};
        if (!channel_ || ::poll(&polled, 1, 0) != 1) return alive();
        auto received = channel_.receive(Deadline::after(std::chrono::milliseconds(100)));
        if (!received) {
            channel_.close();
            return false;
        }
        if (received->message.has_guest_event()) events_.push_back(received->message.guest_event());
    }
}

void VmmProcess::kill() {
    if (!process_) return;
    process_.kill();
    ::unlink(socket_path_.c_str());
    channel_.close();
    session_file_.reset();
}

void VmmProcess::wait_or_kill(Deadline deadline) {
    process_.await_end(deadline);
    kill();
}

void VmmProcess::forget() {
    process_.forget();
    session_file_.reset();
    channel_.close();
}

} // namespace liveupdate::supervisor
