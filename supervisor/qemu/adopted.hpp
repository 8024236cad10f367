// A QEMU that was started by somebody else and is taken over: what is left in the VM's runtime folder for its
// supervisor, since such a process has nothing of ours.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "handoff/base/result.hpp"

namespace liveupdate::supervisor::qemu {

inline constexpr unsigned kAdoptedParticipant = 1; // its number in the guest's life

struct AdoptedQemu {
    pid_t pid = 0;
    uint64_t start_ticks = 0; // of the process, after boot: tells it from a later one of that number
    std::vector<std::string> arguments; // what later QEMUs of the guest are started with
};

// `folder`: of the VM's monitors; made where it is not there. `monitor`: an absolute path, to which the
// monitor's socket in the folder becomes a link.
Result<void> keep_adopted(const std::string& folder, const AdoptedQemu& adopted, const std::string& monitor);
// Takes back what keep_adopted() has left, all or half of it; nothing else.
void drop_adopted(const std::string& folder);
std::string adopted_monitor(const std::string& folder); // that link
// Empty when there is none, or when its process has ended.
Result<std::optional<AdoptedQemu>> find_adopted(const std::string& folder);

// kNotFound: there is no such process.
Result<uint64_t> start_ticks_of(pid_t pid);
Result<pid_t> parent_of(pid_t pid);
// The arguments of a process without its name.
Result<std::vector<std::string>> arguments_of(pid_t pid);

} // namespace liveupdate::supervisor::qemu
