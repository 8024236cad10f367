// A look at a QEMU that somebody else has started, before it is taken over. Changes nothing in it.
#pragma once

#include <string>
#include <vector>

#include "handoff/base/deadline.hpp"
#include "supervisor/qemu/adopted.hpp"
#include "supervisor/qemu/ways.hpp"

namespace liveupdate::supervisor::qemu {

struct ForeignQemu {
    AdoptedQemu adopted{};
    std::string binary; // path
    std::string version;
    unsigned vcpus = 0;
    uint64_t memory = 0; // bytes
    ChosenWay way;       // by which it would be updated to itself, when nothing stands in the way
    std::vector<std::string> obstacles; // sentences
};

// `monitor`: the path of a QMP socket that nobody else is connected to. An error: nobody answers there as a
// QEMU that can be asked.
Result<ForeignQemu> inspect_foreign(const std::string& monitor, Deadline deadline);

// The VM file of such a guest. Pure.
std::string vm_file_of(const ForeignQemu& qemu);

} // namespace liveupdate::supervisor::qemu
