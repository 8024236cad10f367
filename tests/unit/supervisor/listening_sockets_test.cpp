#include "supervisor/qemu/listening_sockets.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "handoff/base/fd.hpp"
#include "test_folder.hpp"

using namespace liveupdate;
using namespace liveupdate::supervisor::qemu;
using liveupdate::supervisor::TestFolder;

TEST_CASE("a socket outlives the file that it was bound to, and is nobody else's") {
    const TestFolder folder;
    const std::string path = folder.path() + "/s";
    auto socket = listen_at({.path = path});
    REQUIRE_MESSAGE(socket, socket.error().message);
    CHECK(path_of(socket->get()) == path);
    CHECK((::fcntl(socket->get(), F_GETFL) & O_NONBLOCK) != 0);
    CHECK(fd::unix_connect(path, SOCK_STREAM).has_value());
    CHECK(::access((path + "~").c_str(), F_OK) != 0);
    CHECK(listen_at({.path = path}).error().message == "somebody else listens at " + path);
    remove_dead_socket(path);
    CHECK(::access(path.c_str(), F_OK) == 0);
    socket->reset();
    CHECK(listen_at({.path = path}).has_value()); // nobody's any more, and at once again nobody's
    remove_dead_socket(path);
    CHECK(::access(path.c_str(), F_OK) != 0);
}

TEST_CASE("to look whether somebody listens neither waits nor leaves a client behind") {
    const TestFolder folder;
    const std::string path = folder.path() + "/s";
    const auto socket = fd::unix_listen(path, SOCK_STREAM, 0); // takes one that nobody accepts
    REQUIRE(socket.has_value());
    for (int i = 0; i < 3; ++i)
        CHECK(listen_at({.path = path}).error().message == "somebody else listens at " + path);
    remove_dead_socket(path);
    CHECK(fd::unix_connect(path, SOCK_STREAM, Deadline::after(std::chrono::seconds(0))).has_value());
}

TEST_CASE("a file that is no socket is not replaced by one") {
    const TestFolder folder;
    const std::string path = folder.path() + "/s";
    std::ofstream(path) << "mine";
    CHECK(listen_at({.path = path}).error().message == path + " is no socket, and is not replaced by one");
    std::ofstream(folder.path() + "/u~") << "mine, too";
    CHECK(listen_at({.path = folder.path() + "/u"}).error().message.starts_with(folder.path() + "/u~ is in"));
    CHECK(::access((folder.path() + "/u~").c_str(), F_OK) == 0);
    remove_dead_socket(path);
    CHECK(::access(path.c_str(), F_OK) == 0);
}

TEST_CASE("an address of the host is listened at once") {
    auto socket = listen_at({.host = "127.0.0.1", .port = "0", .family = AF_INET});
    REQUIRE_MESSAGE(socket, socket.error().message);
    CHECK(path_of(socket->get()).empty());
    sockaddr_in address{};
    socklen_t size = sizeof(address);
    REQUIRE(::getsockname(socket->get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
    const std::string port = std::to_string(ntohs(address.sin_port));
    CHECK(listen_at({.host = "127.0.0.1", .port = port, .family = AF_INET}).error().message ==
          "somebody else listens at 127.0.0.1:" + port);
    CHECK(listen_at({.host = "127.0.0.1", .port = "no-such-service"})
              .error()
              .message.starts_with("127.0.0.1:no-such-service is no address of this host: "));
}

namespace {

uint16_t port_of(int socket) {
    sockaddr_in address{};
    socklen_t size = sizeof(address);
    REQUIRE(::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size) == 0);
    return ntohs(address.sin_port);
}

UniqueFd datagram_socket() {
    UniqueFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
    return socket;
}

} // namespace

TEST_CASE("a socket with a peer hears that one alone, and has its port alone") {
    const UniqueFd peer = datagram_socket(), stranger = datagram_socket();
    const std::string peer_port = std::to_string(port_of(peer.get()));
    const auto socket =
        listen_at({.host = "127.0.0.1", .port = "0", .peer_host = "127.0.0.1", .peer_port = peer_port});
    REQUIRE_MESSAGE(socket, socket.error().message);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port_of(socket->get()));
    for (const UniqueFd* from : {&stranger, &peer})
        REQUIRE(::sendto(from->get(), from == &peer ? "p" : "s", 1, 0, reinterpret_cast<sockaddr*>(&address),
                    sizeof(address)) == 1);
    char byte = 0;
    CHECK(::recv(socket->get(), &byte, 1, 0) == 1);
    CHECK(byte == 'p');
    CHECK(::recv(socket->get(), &byte, 1, 0) == -1);
    const std::string port = std::to_string(port_of(socket->get()));
    CHECK(listen_at({.host = "127.0.0.1", .port = port, .peer_host = "127.0.0.1", .peer_port = peer_port})
              .error()
              .message == "somebody else listens at 127.0.0.1:" + port);
    CHECK(listen_at({.host = "127.0.0.1", .port = "0", .peer_host = "127.0.0.1", .peer_port = "no-such"})
              .error()
              .message.starts_with("127.0.0.1:no-such is no address: "));
}

TEST_CASE("a number that has come to stand for something else is told from a socket that listens") {
    const UniqueFd loose = datagram_socket();
    CHECK(!listens_for_guest(loose.get()));
    CHECK(!listens_for_guest(0));
    const auto clients = listen_at({.host = "127.0.0.1", .port = "0"});
    CHECK(listens_for_guest(clients->get()));
    const auto peer = listen_at({.host = "127.0.0.1",
        .port = "0",
        .peer_host = "127.0.0.1",
        .peer_port = std::to_string(port_of(loose.get()))});
    CHECK(listens_for_guest(peer->get()));
    int pair[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair) == 0);
    const UniqueFd one(pair[0]), other(pair[1]);
    CHECK(!listens_for_guest(one.get()));
}
