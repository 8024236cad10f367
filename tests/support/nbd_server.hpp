// An NBD server for tests: nbdkit, with one file as its export of any name, or with the files of a folder.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace liveupdate::tests {

class NbdServer {
public:
    // Why none can be had here; empty when one can.
    static std::string why_none();

    // `socket`: where it listens; empty: 127.0.0.1, at a free port. `what`: the file plugin's parameter, a
    // path or "dir=PATH"; `more` is added, e.g. "--filter=rate", and names another plugin when `what` is
    // empty. Listens when this returns, if up().
    NbdServer(std::string socket, const std::string& what, std::vector<std::string> more = {});
    ~NbdServer(); // SIGKILL, also when it is stopped
    NbdServer(const NbdServer&) = delete;
    NbdServer& operator=(const NbdServer&) = delete;

    bool up() const { return up_; }
    std::string uri(const std::string& name = "guest.save") const;
    unsigned port() const { return port_; }
    void signal(int number) const;
    void kill(); // and waits for its end; the socket's file stays

private:
    std::string socket_;
    unsigned port_ = 0;
    pid_t pid_ = -1;
    bool up_ = false;
};

} // namespace liveupdate::tests
