// A VMM process together with the open file of its binary: the file may be replaced on disk at any time, and
// a rollback must still find what ran.
#pragma once

#include <string>

#include "handoff/base/fd.hpp"
#include "supervisor/binary.hpp"

namespace liveupdate::supervisor {

struct OpenBinary {
    BinaryInfo info;
    UniqueFd file;

    // Inspects and opens; errors as inspect_binary().
    static Result<OpenBinary> open(const std::string& path);
    // The binary of a process, also when its file is gone from disk.
    static Result<OpenBinary> of_process(pid_t pid);

    // What to give to exec: the path while it still is this file, else the open file itself.
    std::string exec_path() const;
};

} // namespace liveupdate::supervisor
