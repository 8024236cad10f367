#include "supervisor/open_binary.hpp"

#include <fcntl.h>
#include <sys/stat.h>

namespace liveupdate::supervisor {

Result<OpenBinary> OpenBinary::open(const std::string& path) {
    OpenBinary binary;
    TRY_ASSIGN(binary.info, inspect_binary(path));
    TRY_ASSIGN(binary.file, fd::open(path, O_RDONLY));
    // What was opened is what will run, even if the path was replaced in between.
    TRY_ASSIGN(binary.info, inspect_binary_fd(binary.file.get(), path));
    return binary;
}

Result<OpenBinary> OpenBinary::of_process(pid_t pid) {
    OpenBinary binary;
    TRY_ASSIGN(binary.info, inspect_process(pid));
    TRY_ASSIGN(binary.file, fd::open("/proc/" + std::to_string(pid) + "/exe", O_RDONLY));
    return binary;
}

std::string OpenBinary::exec_path() const {
    struct stat now {};
    if (::stat(info.path.c_str(), &now) == 0 && now.st_dev == info.device && now.st_ino == info.inode)
        return info.path;
    return "/proc/self/fd/" + std::to_string(file.get());
}

} // namespace liveupdate::supervisor
