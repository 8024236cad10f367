// linux_host_peer GUEST [--ping-hz N] [--window N]: the host's side of the Linux guest's network, in the
// network namespace of its tap. Takes the guest's TCP stream and sends one, both checked byte by byte, and
// pings the guest with numbered echo requests. Ends when its standard input does, with one line:
//
//   peer tcp_received=N tcp_sent=N tcp_errors=N tcp_open=N ping_sent=N ping_answered=N ping_doubled=N
//   ping_reordered=N ping_slowest_us=N
#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "tests/linux/pattern.hpp"
#include "tests/support/pinger.hpp"

namespace {

using namespace linux_guest;
using liveupdate::tests::Pinger;
using ULL = unsigned long long;

std::uint64_t now_ns() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

sockaddr_in address(const char* text, std::uint16_t port) {
    sockaddr_in in{};
    in.sin_family = AF_INET;
    in.sin_port = htons(port);
    if (text != nullptr) ::inet_pton(AF_INET, text, &in.sin_addr);
    return in;
}

// One connection at a time.
class Stream {
public:
    explicit Stream(std::uint64_t pause_us) : pause_ns_(pause_us * 1000) {}

    bool listen() {
        listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        const int on = 1;
        ::setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        const sockaddr_in any = address(nullptr, kTcpPort);
        return ::bind(listener_, reinterpret_cast<const sockaddr*>(&any), sizeof(any)) == 0 &&
               ::listen(listener_, 1) == 0;
    }
    // What is waited for; only POLLOUT when a chunk is due.
    pollfd wanted() const {
        if (fd_ < 0) return {listener_, POLLIN, 0};
        return {fd_, static_cast<short>(POLLIN | (now_ns() >= next_send_ns_ ? POLLOUT : 0)), 0};
    }
    void serve(short events) {
        if (fd_ < 0) {
            if ((events & POLLIN) != 0) fd_ = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
            return;
        }
        if ((events & POLLOUT) != 0) send_some();
        if ((events & (POLLIN | POLLHUP | POLLERR)) != 0) receive_some();
    }
    void say() const {
        std::printf("peer tcp_received=%llu tcp_sent=%llu tcp_errors=%llu tcp_open=%d ", ULL{received_},
            ULL{sent_}, ULL{errors_}, fd_ >= 0 ? 1 : 0);
    }

private:
    void send_some() {
        buffer_.resize(16384);
        fill_stream(buffer_, kHostToGuest, sent_);
        const ssize_t n = ::send(fd_, buffer_.data(), buffer_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0) sent_ += static_cast<std::uint64_t>(n);
        next_send_ns_ = now_ns() + pause_ns_;
    }
    void receive_some() {
        buffer_.resize(65536);
        const ssize_t n = ::recv(fd_, buffer_.data(), buffer_.size(), MSG_DONTWAIT);
        if (n < 0) {
            if (errno == EAGAIN) return;
            std::fprintf(
                stderr, "peer: receive after %llu bytes: %s\n", ULL{received_}, std::strerror(errno));
            ++errors_;
        }
        if (n <= 0) { // the guest's end: ours follows, after all that was sent
            ::close(fd_);
            fd_ = -1;
            return;
        }
        const std::size_t bytes = static_cast<std::size_t>(n);
        const std::size_t wrong = stream_mismatch({buffer_.data(), bytes}, kGuestToHost, received_);
        if (wrong != bytes && errors_++ == 0)
            std::fprintf(stderr, "peer: byte %llu of the guest's stream is wrong\n", ULL{received_ + wrong});
        received_ += bytes;
    }

    const std::uint64_t pause_ns_;
    int listener_ = -1, fd_ = -1;
    std::uint64_t sent_ = 0, received_ = 0, errors_ = 0, next_send_ns_ = 0;
    std::vector<std::uint8_t> buffer_;
};

std::uint64_t option(int argc, char** argv, const char* name, std::uint64_t otherwise) {
    for (int i = 2; i + 1 < argc; ++i)
        if (std::strcmp(argv[i], name) == 0) return std::strtoull(argv[i + 1], nullptr, 0);
    return otherwise;
}

void say(const Pinger::Figures& seen) {
    std::printf(
        "ping_sent=%llu ping_answered=%llu ping_doubled=%llu ping_reordered=%llu ping_slowest_us=%llu\n",
        ULL{seen.sent}, ULL{seen.answered}, ULL{seen.doubled}, ULL{seen.reordered}, ULL{seen.slowest_us});
}

// What standard input says; false at its end.
bool obey(Pinger& pinger) {
    std::array<char, 256> text{};
    const ssize_t n = ::read(STDIN_FILENO, text.data(), text.size() - 1);
    const std::string words(text.data());
    if (words.find("ping") != std::string::npos) pinger.turn(true);
    if (words.find("quiet") != std::string::npos) pinger.turn(false);
    return n > 0;
}

// Until standard input ends, and then until every ping is answered, for some seconds at most.
void serve(Stream& stream, Pinger& pinger) {
    constexpr std::uint64_t kPatienceNs = 10'000'000'000;
    bool ending = false;
    std::uint64_t last_ns = 0;
    while (!ending || (now_ns() < last_ns && !pinger.all_answered())) {
        pinger.send_due();
        std::array<pollfd, 3> poll = {
            pollfd{pinger.fd(), POLLIN, 0}, stream.wanted(), {ending ? -1 : STDIN_FILENO, POLLIN, 0}};
        ::poll(poll.data(), poll.size(),
            pinger.on() ? std::min(static_cast<int>(pinger.next_ns() / 1'000'000) + 1, 5) : 5);
        if (poll[0].revents != 0) pinger.receive_all();
        if (poll[1].revents != 0) stream.serve(poll[1].revents);
        if (poll[2].revents == 0 || obey(pinger)) continue;
        pinger.turn(false);
        ending = true;
        last_ns = now_ns() + kPatienceNs;
    }
}

} // namespace

int main(int argc, char** argv) {
    if (argc < 2) {
        std::fprintf(stderr, "usage: linux_host_peer GUEST [--ping-hz N] [--window N] [--tcp-pause-us N]\n");
        return 2;
    }
    Stream stream(option(argc, argv, "--tcp-pause-us", 10000));
    Pinger pinger(argv[1], option(argc, argv, "--ping-hz", 100), option(argc, argv, "--window", 64));
    if (!stream.listen() || !pinger.open()) {
        std::perror("linux_host_peer");
        return 1;
    }
    std::printf("peer ready\n");
    std::fflush(stdout);
    serve(stream, pinger);
    stream.say();
    say(pinger.figures());
}
