// Sockets at which devices of a guest listen: character devices and networks of [qemu] extra_args.
//
// Two QEMUs cannot each make a socket at one place, so the supervisor makes it once, and every QEMU of the
// guest listens at the same one, by its number. A client is connected to the QEMU that has accepted it; a
// packet is read by one of them.
#pragma once

#include <string>

#include "handoff/base/result.hpp"
#include "handoff/base/unique_fd.hpp"

namespace liveupdate::supervisor::qemu {

// At a path, or at an address of the host.
struct ListeningSocket {
    std::string path{};
    std::string host{}; // empty: every address
    std::string port{}; // or a service's name
    int family = 0;     // AF_UNSPEC, AF_INET or AF_INET6
    // With a peer it is a UDP socket that is connected to it, else it takes clients.
    std::string peer_host{}; // empty: this host
    std::string peer_port{};
    bool has_peer() const { return !peer_port.empty(); }
};

// Listens; a socket's file that nobody listens at any more is replaced. kBusy: somebody does; kInvalid: what
// is at the path is no socket, or an address is none.
Result<UniqueFd> listen_at(const ListeningSocket& at);

// Whether a descriptor is a socket as listen_at() makes one.
bool listens_for_guest(int file);

// Where a socket of listen_at() has its file; empty for one that has none.
std::string path_of(int socket);
// Removes the file, unless somebody listens there.
void remove_dead_socket(const std::string& path);

} // namespace liveupdate::supervisor::qemu
