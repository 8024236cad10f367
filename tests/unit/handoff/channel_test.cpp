#include "handoff/channel.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/socket.h>

#include <cstring>
#include <thread>

#include "handoff/base/fd.hpp"
#include "tests/unit/handoff/support.hpp"

namespace liveupdate::handoff {
namespace {

// A channel and, at the other end of its socket, a peer that sends what it likes.
struct Ends {
    Channel channel;
    UniqueFd peer;
};

Ends connected() {
    auto [a, b] = must(fd::socketpair(SOCK_SEQPACKET));
    return {Channel(std::move(a)), std::move(b)};
}

void send_raw(int socket, std::string_view bytes, const std::vector<int>& fds = {}) {
    std::vector<char> control(CMSG_SPACE(fds.size() * sizeof(int)));
    iovec data{const_cast<char*>(bytes.data()), bytes.size()};
    msghdr header{};
    header.msg_iov = &data;
    header.msg_iovlen = 1;
    if (!fds.empty()) {
        header.msg_control = control.data();
        header.msg_controllen = control.size();
        cmsghdr* c = CMSG_FIRSTHDR(&header);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
        std::memcpy(CMSG_DATA(c), fds.data(), fds.size() * sizeof(int));
    }
    REQUIRE(::sendmsg(socket, &header, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()));
}

std::string bytes_of(const proto::Message& message) {
    return message.SerializeAsString();
}

proto::Message query_naming(const std::vector<std::string>& names) {
    proto::Message message;
    message.mutable_query();
    for (const auto& name : names)
        message.add_fd_names(name);
    return message;
}

// Sends the packet, expects kProtocol, and that neither the packet's fds nor anything else stays open.
std::string refusal_of(std::string_view packet, const std::vector<int>& fds = {}) {
    Ends ends = connected();
    const size_t before = open_fds();
    send_raw(ends.peer.get(), packet, fds);
    std::string words;
    {
        const auto received = ends.channel.receive(patience());
        REQUIRE_FALSE(received);
        CHECK(received.error().code == ErrorCode::kProtocol);
        words = received.error().message;
    }
    CHECK(open_fds() == before);
    // The packet is gone whole: the next one is read as usual.
    send_raw(ends.peer.get(), bytes_of(query_naming({})));
    const auto next = ends.channel.receive(patience());
    REQUIRE(next);
    CHECK(next->message.has_query());
    return words;
}

} // namespace

TEST_CASE("a message arrives whole, with its file descriptors by name") {
    Ends ends = connected();
    Channel sender(std::move(ends.peer));
    const UniqueFd file = must(fd::memfd_create("file", 0));
    REQUIRE(::ftruncate(file.get(), 123) == 0);
    const UniqueFd event = must(fd::eventfd(7));
    proto::Message message;
    message.mutable_hello()->set_supervisor_version("1.2.3");
    must(sender.send(message, {{"file", file.get()}, {"event", event.get()}}, patience()));

    Received received = must(ends.channel.receive(patience()));
    CHECK(received.message.hello().supervisor_version() == "1.2.3");
    REQUIRE(received.fds.size() == 2);
    const UniqueFd got_file = must(take_fd(received.fds, "file"));
    CHECK(::lseek(got_file.get(), 0, SEEK_END) == 123);
    CHECK((::fcntl(got_file.get(), F_GETFD) & FD_CLOEXEC) != 0);
    const UniqueFd got_event = must(take_fd(received.fds, "event"));
    uint64_t count = 0;
    CHECK(::read(got_event.get(), &count, sizeof(count)) == sizeof(count));
    CHECK(count == 7);
}

TEST_CASE("a file descriptor is taken once, and a missing one is told by name") {
    Ends ends = connected();
    Channel sender(std::move(ends.peer));
    const UniqueFd event = must(fd::eventfd(0));
    must(sender.send(query_naming({}), {{"baton", event.get()}}, patience()));
    Received received = must(ends.channel.receive(patience()));
    CHECK(take_fd(received.fds, "baton"));
    const auto again = take_fd(received.fds, "baton");
    REQUIRE_FALSE(again);
    CHECK(again.error().code == ErrorCode::kProtocol);
    CHECK(contains(again.error().message, "'baton'"));
}

TEST_CASE("the kernel vouches for the sender") {
    Ends ends = connected();
    send_raw(ends.peer.get(), bytes_of(query_naming({})));
    const Received received = must(ends.channel.receive(patience()));
    CHECK(received.sender.pid == ::getpid());
    CHECK(received.sender.uid == ::getuid());
    CHECK(received.sender.gid == ::getgid());

    const Child child([&] {
        Channel own(must(fd::dup(ends.peer.get())));
        return own.send(query_naming({}), patience()) ? 0 : 1;
    });
    CHECK(must(ends.channel.receive(patience())).sender.pid == child.pid());
}

TEST_CASE("a packet longer than the limit is refused") {
    CHECK(contains(refusal_of(std::string(Channel::kMaxPacket + 1, 'x')), "more than 128 KiB"));
}

TEST_CASE("a packet longer than the limit is refused though its beginning is a message") {
    const UniqueFd event = must(fd::eventfd(0));
    proto::Message message = query_naming({"event"});
    message.mutable_description()->set_fixed_state(std::string(Channel::kMaxPacket, 'x'));
    CHECK(contains(refusal_of(bytes_of(message), {event.get()}), "more than 128 KiB"));
}

TEST_CASE("a packet as long as the limit arrives") {
    Ends ends = connected();
    Channel sender(std::move(ends.peer));
    proto::Message message;
    message.mutable_description()->set_fixed_state("");
    size_t size = Channel::kMaxPacket;
    do
        message.mutable_description()->set_fixed_state(std::string(--size, 'x'));
    while (message.ByteSizeLong() > Channel::kMaxPacket);
    REQUIRE(message.ByteSizeLong() == Channel::kMaxPacket);
    must(sender.send(message, patience()));
    CHECK(must(ends.channel.receive(patience())).message.description().fixed_state().size() == size);
}

TEST_CASE("a message that does not fit into a packet is not sent") {
    Ends ends = connected();
    proto::Message message;
    message.mutable_description()->set_fixed_state(std::string(Channel::kMaxPacket, 'x'));
    const auto sent = ends.channel.send(message, patience());
    REQUIRE_FALSE(sent);
    CHECK(sent.error().code == ErrorCode::kInternal);
    char byte = 0;
    CHECK(::recv(ends.peer.get(), &byte, 1, MSG_DONTWAIT) < 0);
}

TEST_CASE("bytes that are no message are refused, with their file descriptors closed") {
    const UniqueFd event = must(fd::eventfd(0));
    CHECK(
        contains(refusal_of("\xff\xff\xff\xff", {event.get(), event.get()}), "4 bytes that are no message"));
    std::string noise(4096, '\0');
    for (size_t i = 0; i < noise.size(); ++i)
        noise[i] = static_cast<char>(i * 131 + (i >> 3) + 7);
    CHECK(contains(refusal_of(noise), "no message"));
    std::string cut = bytes_of(query_naming({"event"}));
    cut.pop_back();
    CHECK(contains(refusal_of(cut, {event.get()}), "no message"));
}

TEST_CASE("more file descriptors than a message may carry are refused") {
    const UniqueFd event = must(fd::eventfd(0));
    const std::vector<std::string> names(Channel::kMaxFds + 1, "event");
    const std::vector<int> fds(names.size(), event.get());
    CHECK(contains(refusal_of(bytes_of(query_naming(names)), fds), "more file descriptors than"));
    CHECK(contains(refusal_of(bytes_of(query_naming({})), std::vector<int>(253, event.get())),
        "more file descriptors than"));
}

TEST_CASE("as many file descriptors as a message may carry arrive") {
    Ends ends = connected();
    Channel sender(std::move(ends.peer));
    const UniqueFd event = must(fd::eventfd(0));
    std::vector<FdToSend> fds;
    for (size_t i = 0; i < Channel::kMaxFds; ++i)
        fds.push_back({"fd" + std::to_string(i), event.get()});
    must(sender.send(query_naming({}), fds, patience()));
    CHECK(must(ends.channel.receive(patience())).fds.size() == Channel::kMaxFds);
    fds.push_back({"one-more", event.get()});
    const auto sent = sender.send(query_naming({}), fds, patience());
    REQUIRE_FALSE(sent);
    CHECK(sent.error().code == ErrorCode::kInternal);
}

TEST_CASE("file descriptors and names that do not match in number are refused") {
    const UniqueFd event = must(fd::eventfd(0));
    const int fd = event.get();
    CHECK(contains(
        refusal_of(bytes_of(query_naming({"a", "b"})), {fd}), "names 2 file descriptors and carries 1"));
    CHECK(contains(
        refusal_of(bytes_of(query_naming({"a"})), {fd, fd}), "names 1 file descriptors and carries 2"));
    CHECK(contains(refusal_of(bytes_of(query_naming({})), {fd}), "names 0 file descriptors and carries 1"));
    CHECK(contains(refusal_of(bytes_of(query_naming({"a"}))), "names 1 file descriptors and carries 0"));
}

TEST_CASE("two file descriptors of one name are refused") {
    const UniqueFd event = must(fd::eventfd(0));
    const int fd = event.get();
    CHECK(contains(refusal_of(bytes_of(query_naming({"a", "b", "a"})), {fd, fd, fd}), "have the name 'a'"));
}

TEST_CASE("the words about a file descriptor with an endless name are short") {
    const UniqueFd event = must(fd::eventfd(0));
    const std::string name(50'000, 'n');
    CHECK(refusal_of(bytes_of(query_naming({name, name})), {event.get(), event.get()}).size() < 1000);
}

TEST_CASE("an empty packet is an empty message, not the end of the session") {
    Ends ends = connected();
    send_raw(ends.peer.get(), "");
    CHECK(kind_of(must(ends.channel.receive(patience())).message) == "empty or unknown message");
    ends.peer.reset();
    CHECK(ends.channel.receive(patience()).error().code == ErrorCode::kPeerGone);
}

TEST_CASE("a closed peer is told as such, to the receiver and to the sender") {
    Ends ends = connected();
    ends.peer.reset();
    const auto received = ends.channel.receive(patience());
    REQUIRE_FALSE(received);
    CHECK(received.error().code == ErrorCode::kPeerGone);
    const auto sent = ends.channel.send(query_naming({}), patience());
    REQUIRE_FALSE(sent);
    CHECK(sent.error().code == ErrorCode::kPeerGone);
}

TEST_CASE("what a peer sent before it closed still arrives") {
    Ends ends = connected();
    send_raw(ends.peer.get(), bytes_of(query_naming({})));
    ends.peer.reset();
    CHECK(ends.channel.receive(patience()));
    CHECK(ends.channel.receive(patience()).error().code == ErrorCode::kPeerGone);
}

TEST_CASE("a peer that closes while it is waited for ends the wait") {
    Ends ends = connected();
    std::thread closer([&] { ends.peer.reset(); });
    const auto received = ends.channel.receive(Deadline::never());
    closer.join();
    REQUIRE_FALSE(received);
    CHECK(received.error().code == ErrorCode::kPeerGone);
}

TEST_CASE("a silent peer is given up at the deadline") {
    Ends ends = connected();
    const auto received = ends.channel.receive(soon());
    REQUIRE_FALSE(received);
    CHECK(received.error().code == ErrorCode::kTimeout);
}

TEST_CASE("a peer that does not read is given up at the deadline") {
    Ends ends = connected();
    proto::Message message;
    message.mutable_description()->set_fixed_state(std::string(60'000, 'x'));
    Result<void> sent;
    for (int i = 0; i < 1000 && sent; ++i)
        sent = ends.channel.send(message, soon());
    REQUIRE_FALSE(sent);
    CHECK(sent.error().code == ErrorCode::kTimeout);
}

TEST_CASE("a wait is ended by its cancel fd, though a message that is there comes first") {
    Ends ends = connected();
    const UniqueFd cancel = must(fd::eventfd(1));
    const auto cancelled = ends.channel.receive(Deadline::never(), cancel.get());
    REQUIRE_FALSE(cancelled);
    CHECK(cancelled.error().code == ErrorCode::kAborted);
    send_raw(ends.peer.get(), bytes_of(query_naming({})));
    CHECK(ends.channel.receive(Deadline::never(), cancel.get()));
}

TEST_CASE("a cancel fd that becomes readable during the wait ends it") {
    Ends ends = connected();
    const UniqueFd cancel = must(fd::eventfd(0));
    std::thread canceller([&] {
        const uint64_t one = 1;
        CHECK(::write(cancel.get(), &one, sizeof(one)) == sizeof(one));
    });
    const auto received = ends.channel.receive(Deadline::never(), cancel.get());
    canceller.join();
    REQUIRE_FALSE(received);
    CHECK(received.error().code == ErrorCode::kAborted);
}

TEST_CASE("a message that this build does not know is told apart from one that it does") {
    proto::Message known;
    known.mutable_trial_saved();
    CHECK(kind_of(known) == "trial_saved");
    CHECK(kind_of(proto::Message()) == "empty or unknown message");
    Ends ends = connected();
    send_raw(ends.peer.get(), std::string("\xa2\x1f\x00", 3)); // field 500, an empty message
    const Received received = must(ends.channel.receive(patience()));
    CHECK(kind_of(received.message) == "empty or unknown message");
}

} // namespace liveupdate::handoff
