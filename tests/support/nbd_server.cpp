#include "tests/support/nbd_server.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "handoff/base/listening.hpp"
#include "handoff/base/unique_fd.hpp"

namespace liveupdate::tests {
namespace {

sockaddr_in loopback(unsigned port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(port));
    return address;
}

unsigned free_port() {
    const UniqueFd probe(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address = loopback(0);
    socklen_t size = sizeof(address);
    if (::bind(probe.get(), reinterpret_cast<sockaddr*>(&address), size) < 0 ||
        ::getsockname(probe.get(), reinterpret_cast<sockaddr*>(&address), &size) < 0)
        return 0;
    return ntohs(address.sin_port);
}

bool accepts(unsigned port) {
    const UniqueFd probe(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_in address = loopback(port);
    return ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
}

} // namespace

std::string NbdServer::why_none() {
    for (const char* program : {"/usr/sbin/nbdkit", "/usr/bin/nbdkit"})
        if (::access(program, X_OK) == 0) return {};
    return "an NBD server needs nbdkit; ./dev setup --all";
}

NbdServer::NbdServer(std::string socket, const std::string& what, std::vector<std::string> more)
    : socket_(std::move(socket)), port_(socket_.empty() ? free_port() : 0) {
    std::vector<std::string> words = {"nbdkit", "-f", "-r"};
    if (socket_.empty()) {
        words.insert(words.end(), {"-i", "127.0.0.1", "-p", std::to_string(port_)});
    } else {
        ::unlink(socket_.c_str()); // of a server that was killed
        words.insert(words.end(), {"-U", socket_});
    }
    for (std::string& word : more)
        if (word.starts_with("-")) words.push_back(word);
    if (!what.empty()) words.insert(words.end(), {"file", what});
    for (std::string& word : more)
        if (!word.starts_with("-")) words.push_back(word);
    std::vector<char*> arguments;
    for (std::string& word : words)
        arguments.push_back(word.data());
    arguments.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        const int null = ::open("/dev/null", O_RDWR);
        for (const int target : {0, 1, 2})
            ::dup2(null, target);
        ::execvp(arguments[0], arguments.data());
        ::_exit(127);
    }
    for (int i = 0; i < 1000 && !up_ && ::waitpid(pid_, nullptr, WNOHANG) == 0; ++i) {
        up_ = socket_.empty() ? accepts(port_) : is_listening(socket_);
        if (!up_) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
}

NbdServer::~NbdServer() {
    const bool another_may_listen = pid_ <= 0;
    kill();
    if (!socket_.empty() && !another_may_listen) ::unlink(socket_.c_str());
}

void NbdServer::signal(int number) const {
    if (pid_ <= 0) return;
    ::kill(pid_, number);
    // Its threads may go on until the last of them has stopped.
    if (number == SIGSTOP) ::waitpid(pid_, nullptr, WUNTRACED);
}

void NbdServer::kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
    up_ = false;
}

std::string NbdServer::uri(const std::string& name) const {
    if (socket_.empty()) return "nbd://127.0.0.1:" + std::to_string(port_) + "/" + name;
    return "nbd+unix:///" + name + "?socket=" + socket_;
}

} // namespace liveupdate::tests
