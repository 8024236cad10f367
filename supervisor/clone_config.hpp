// The VM file of a clone: its template's, with what may be only one VM's changed.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "handoff/base/result.hpp"

namespace liveupdate::supervisor {

struct CloneFacts {
    std::string name;
    std::string template_name;
    // By card on a tap, in the order of the file; each a tap device of the clone's own.
    std::vector<std::string> taps;
    // By disk: the clone's own copy; empty for a disk that is only read, which all share.
    std::vector<std::string> disks;
};

// The first line of such a file; what begins with it was written by `liveupdate clone`.
constexpr std::string_view kCloneMark = "# Written by `liveupdate clone`";

// `text` is the VM file that the template has kept, `vm_file` where it lay: relative paths in it start from
// there. Addresses of network cards are left out, so that they follow from the clone's name; a console of
// type "file" gets the clone's name in the same folder. kInvalid in words; what the file says else is not
// looked at.
Result<std::string> clone_config(std::string_view text, const std::string& vm_file, const CloneFacts& facts);

} // namespace liveupdate::supervisor
