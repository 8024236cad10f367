// What a VMM binary is, from its ELF headers: enough to tell two builds apart and to refuse a file that
// cannot be one. The files are not trusted: every offset and length in them is checked before it is used.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "handoff/base/result.hpp"

namespace liveupdate::supervisor {

struct BinaryInfo {
    std::string path;
    std::string build_id; // lower-case hex, 2 to 128 digits
    uint64_t size = 0;    // bytes
    dev_t device = 0;     // with inode: which file it was
    ino_t inode = 0;
};

// A file that could be started as a VMM: regular, executable by us, x86-64 ELF, with an entry point and a
// build-id. Otherwise kInvalid (kNotFound when there is no such file, kSystem when reading it fails), with a
// sentence that begins with the path.
Result<BinaryInfo> inspect_binary(const std::string& path);

// The same for a file that is open already, without asking whether we may execute it; `path` is only named.
Result<BinaryInfo> inspect_binary_fd(int fd, const std::string& path);

// The binary that a process runs, also when its file has been replaced or removed since; `path` is where the
// file was when the process started.
Result<BinaryInfo> inspect_process(pid_t pid);

// The first 8 digits, which is what people see.
std::string short_build_id(const std::string& build_id);

} // namespace liveupdate::supervisor
