// What the processes of a VM hold: file descriptors and shared mappings by kind, session sockets, children
// that nobody has reaped. Two of these, before and after, show a leak.
#pragma once

#include <sys/types.h>

#include <map>
#include <string>
#include <vector>

namespace liveupdate::tests {

// "memfd:ram0", "socket", "anon_inode:kvm-vm" and so on, and how many; numbers of inodes are left out.
using Kinds = std::map<std::string, int>;

struct Holdings {
    Kinds supervisor;
    Kinds vmm;
    std::vector<std::string> sockets; // in the VM's runtime folder, sessions' numbers left out
    size_t processes = 0;             // of this VM, the supervisor included
    size_t zombies = 0;               // children of the supervisor
    bool operator==(const Holdings&) const = default;
};

// `directory`: what the environment of all processes of one LiveVm names.
Holdings holdings_of(pid_t supervisor, pid_t vmm, const std::string& directory);
std::string to_string(const Holdings& holdings);
// Kinds that are in one and not, or not so often, in the other.
std::string difference(const Holdings& before, const Holdings& after);

// Processes whose environment mentions `directory`, without zombies.
std::vector<pid_t> processes_of(const std::string& directory);

} // namespace liveupdate::tests
