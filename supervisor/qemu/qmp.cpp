#include "supervisor/qemu/qmp.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

#include "handoff/base/words.hpp"

namespace liveupdate::supervisor::qemu {
namespace {

constexpr size_t kLongestMessage = size_t{16} << 20; // query-qmp-schema has some 200 KiB
constexpr size_t kMostEvents = 1024;                 // that wait to be looked at
constexpr size_t kMostAnswers = 64;
constexpr size_t kLongestWords = 512;

uint64_t number_of(const nlohmann::json& object, const char* key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_number_unsigned() ? found->get<uint64_t>() : 0;
}

const nlohmann::json& object_in(const nlohmann::json& object, const char* key) {
    static const nlohmann::json kEmpty = nlohmann::json::object();
    const auto found = object.find(key);
    return found != object.end() && found->is_object() ? *found : kEmpty;
}

} // namespace

std::string word_in(const nlohmann::json& object, const char* key) {
    const auto found = object.find(key); // of what is no object: none
    return found != object.end() && found->is_string() ? printable(found->get<std::string>(), kLongestWords)
                                                       : std::string();
}

Result<QmpChannel> QmpChannel::open(UniqueFd socket, Deadline deadline, int cancel_fd) {
    QmpChannel channel;
    channel.socket_ = std::move(socket);
    if (::fcntl(channel.socket_.get(), F_SETFL, O_NONBLOCK) < 0) return Error::from_errno("QMP socket");
    while (channel.version_.empty()) {
        TRY(channel.await_input(deadline, cancel_fd).context("QEMU's greeting"));
        TRY(channel.take_arrived());
    }
    TRY(channel.execute("qmp_capabilities", nullptr, deadline, cancel_fd));
    return channel;
}

// 0xFF, which is in no JSON text, makes QEMU's parser begin anew (its docs/interop/qmp-spec). Commands are
// done in their order, so what comes before our answer is not ours.
Result<QmpChannel> QmpChannel::resume(UniqueFd socket, Deadline deadline) {
    QmpChannel channel;
    channel.socket_ = std::move(socket);
    if (::fcntl(channel.socket_.get(), F_SETFL, O_NONBLOCK) < 0) return Error::from_errno("QMP socket");
    channel.resumed_by_ = "resume-" + std::to_string(::getpid()) + "-" + std::to_string(monotonic_ns());
    // Refused where it was said before: that is an answer, too.
    const nlohmann::json message = {{"execute", "qmp_capabilities"}, {"id", channel.resumed_by_}};
    TRY(channel.send_all("\xff\n" + message.dump() + "\n", "go on with its monitor", deadline));
    while (!channel.resumed_by_.empty()) {
        TRY(channel.await_input(deadline, -1));
        TRY(channel.take_arrived());
    }
    TRY_ASSIGN(const nlohmann::json version, channel.execute("query-version", nullptr, deadline));
    TRY(channel.take_version(version));
    return channel;
}

Result<nlohmann::json> QmpChannel::execute(
    const std::string& command, nlohmann::json arguments, Deadline deadline, int cancel_fd) {
    TRY_ASSIGN(const uint64_t id, send(command, std::move(arguments), deadline));
    return answer(id, deadline, cancel_fd).context(command);
}

Result<uint64_t> QmpChannel::send(const std::string& command, nlohmann::json arguments, Deadline deadline) {
    nlohmann::json message = {{"execute", command}, {"id", ++last_id_}};
    if (arguments.is_object()) message["arguments"] = std::move(arguments);
    TRY(send_all(message.dump() + "\n", command, deadline));
    return last_id_;
}

Result<void> QmpChannel::send_all(std::string_view bytes, const std::string& what, Deadline deadline) {
    while (!bytes.empty()) {
        const ssize_t n = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (n >= 0) {
            bytes.remove_prefix(static_cast<size_t>(n));
            continue;
        }
        if (errno == EINTR) continue;
        if (errno == EPIPE || errno == ECONNRESET)
            return Error(ErrorCode::kPeerGone, what + ": QEMU has closed its monitor");
        if (errno != EAGAIN) return Error::from_errno("send " + what + " to QEMU");
        if (deadline.passed()) return Error(ErrorCode::kTimeout, what + ": QEMU does not read its monitor");
        pollfd polled{socket_.get(), POLLOUT, 0};
        ::poll(&polled, 1, deadline.poll_ms());
    }
    return {};
}

Result<nlohmann::json> QmpChannel::answer(uint64_t id, Deadline deadline, int cancel_fd) {
    for (;;) {
        if (auto found = answers_.find(id); found != answers_.end()) {
            nlohmann::json message = std::move(found->second);
            answers_.erase(answers_.begin(), std::next(found)); // with those that nobody waits for any more
            if (message.contains("return")) return std::move(message["return"]);
            const std::string words = word_in(object_in(message, "error"), "desc");
            return Error(ErrorCode::kRefused, words.empty() ? "QEMU refuses without a reason" : words);
        }
        TRY(await_input(deadline, cancel_fd));
        const auto taken = take_arrived();
        if (!taken && !answers_.contains(id)) return taken.error();
    }
}

Result<void> QmpChannel::await_input(Deadline deadline, int cancel_fd) {
    pollfd polled[] = {{socket_.get(), POLLIN, 0}, {cancel_fd, POLLIN, 0}};
    for (;;) {
        const int ready = ::poll(polled, 2, deadline.poll_ms());
        if (ready < 0 && errno == EINTR) continue;
        if (ready < 0) return Error::from_errno("wait for QEMU");
        if (polled[1].revents != 0) return Error(ErrorCode::kAborted, "somebody asked for it to stop");
        if (polled[0].revents != 0) return {};
        if (deadline.passed()) return Error(ErrorCode::kTimeout, "QEMU's monitor does not answer");
    }
}

Result<void> QmpChannel::take_arrived() {
    char bytes[16384];
    for (;;) {
        const ssize_t n = ::read(socket_.get(), bytes, sizeof(bytes));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return {};
        if (n <= 0) return Error(ErrorCode::kPeerGone, "QEMU has closed its monitor");
        size_t begin = 0, seen = received_.size();
        received_.append(bytes, static_cast<size_t>(n));
        for (size_t end; (end = received_.find('\n', seen)) != std::string::npos; begin = seen = end + 1)
            TRY(take_line(std::string_view(received_).substr(begin, end - begin)));
        received_.erase(0, begin);
        if (received_.size() > kLongestMessage)
            return Error(ErrorCode::kProtocol, "QEMU sends a message without end");
    }
}

Result<void> QmpChannel::take_line(std::string_view line) {
    nlohmann::json message = nlohmann::json::parse(line, nullptr, false);
    if (!resumed_by_.empty()) {
        if (message.is_object() && word_in(message, "id") == resumed_by_) resumed_by_.clear();
        return {};
    }
    if (!message.is_object()) return Error(ErrorCode::kProtocol, "QEMU sends what is no QMP message");
    if (message.contains("QMP")) return take_version(object_in(object_in(message, "QMP"), "version"));
    if (message.contains("event")) return take_event(message);
    if (!message.contains("return") && !message.contains("error"))
        return Error(ErrorCode::kProtocol, "QEMU sends a message of an unknown kind");
    const uint64_t id = number_of(message, "id");
    if (id == 0 || id > last_id_) return Error(ErrorCode::kProtocol, "QEMU answers what was not asked");
    if (answers_.size() >= kMostAnswers) answers_.erase(answers_.begin());
    answers_[id] = std::move(message);
    return {};
}

Result<void> QmpChannel::take_version(const nlohmann::json& version) {
    const auto& number = object_in(version, "qemu");
    if (number.empty()) return Error(ErrorCode::kProtocol, "QEMU does not tell its version");
    version_ = std::to_string(number_of(number, "major")) + "." + std::to_string(number_of(number, "minor")) +
               "." + std::to_string(number_of(number, "micro"));
    return {};
}

// A guest cannot cause many: one that floods us is dropped at its oldest end.
Result<void> QmpChannel::take_event(const nlohmann::json& message) {
    if (events_.size() >= kMostEvents) events_.pop_front();
    const auto& stamp = object_in(message, "timestamp");
    events_.push_back({word_in(message, "event"), object_in(message, "data"),
        number_of(stamp, "seconds") * 1'000'000 + number_of(stamp, "microseconds")});
    return {};
}

} // namespace liveupdate::supervisor::qemu
