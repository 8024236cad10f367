// Which devices of [qemu] extra_args have sockets at places of this host that two QEMUs cannot each have:
//
//   -chardev socket,…,server=on                        clients of a character device
//   -netdev stream,…,server=on, or socket,…,listen=…   clients of a network
//   -netdev dgram,…, or socket,…,udp=…                 packets of one peer, in UDP
//
// Instead of its place each is given the number of a socket that the supervisor opens once, and that every
// QEMU of the guest inherits: listening_sockets.hpp. Networks then need QEMU 7.2, which has stream and dgram.
// Pure.
#pragma once

#include <string>
#include <vector>

#include "handoff/base/result.hpp"
#include "supervisor/qemu/listening_sockets.hpp"

namespace liveupdate::supervisor::qemu {

inline constexpr int kMostListening = 16;

struct ListeningPlan {
    std::vector<std::string> arguments;   // with numbers, from kFirstListeningFd on, in place of addresses
    std::vector<ListeningSocket> sockets; // in the order of their numbers
};

// kInvalid: an option that listens where a second QEMU could not, why, and what to write instead.
Result<ListeningPlan> plan_listening(const std::vector<std::string>& extra_args);

// The numbers that a command line made of such a plan names.
std::vector<int> listening_numbers(const std::vector<std::string>& arguments);

} // namespace liveupdate::supervisor::qemu
