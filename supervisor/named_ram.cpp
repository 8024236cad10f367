#include "supervisor/named_ram.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "handoff/base/fd.hpp"

namespace liveupdate::supervisor {
namespace {

Result<void> lock(int file, const std::string& path) {
    struct flock wanted {};
    wanted.l_type = F_WRLCK;
    wanted.l_whence = SEEK_SET;
    if (::fcntl(file, F_OFD_SETLK, &wanted) == 0) return {};
    if (errno == EAGAIN || errno == EACCES)
        return Error(ErrorCode::kBusy, path + " is the RAM of a guest that runs; stop that first");
    return Error::from_errno("lock " + path);
}

bool same_file(int file, const std::string& path) {
    struct stat open {
    }, named{};
    return ::fstat(file, &open) == 0 && ::lstat(path.c_str(), &named) == 0 && open.st_dev == named.st_dev &&
           open.st_ino == named.st_ino;
}

} // namespace

NamedRam::~NamedRam() {
    for (const std::string& path : given_)
        ::unlink(path.c_str());
}

Result<void> NamedRam::link(const handoff::RamBlock& block, const std::string& directory) {
    const std::string path = directory + "/" + block.name;
    if (block.kind == handoff::RamKind::kMemfd)
        return Error(
            ErrorCode::kRefused, "RAM block " + block.name +
                                     " is anonymous memory, which cannot stay in a file; save it with "
                                     "--file, or give its [[memory]] backing = \"tmpfs\"");
    TRY(lock(block.file.get(), path));
    if (same_file(block.file.get(), path)) return {}; // of a guest that was restored from there
    const std::string open = "/proc/self/fd/" + std::to_string(block.file.get());
    if (::linkat(AT_FDCWD, open.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW) == 0) {
        given_.push_back(path);
        return {};
    }
    if (errno == EXDEV)
        return Error(ErrorCode::kRefused, directory + " is not on the file system that RAM block " +
                                              block.name +
                                              " lies on; save into a folder there ([[memory]] directory)");
    if (errno == EEXIST)
        return Error(ErrorCode::kRefused, path + " exists; save into a folder of this guest's own");
    return Error::from_errno("name RAM block " + block.name + " " + path);
}

Result<UniqueFd> open_named_ram(const std::string& directory, const std::string& name) {
    const std::string path = directory + "/" + name;
    TRY_ASSIGN(UniqueFd file, fd::open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK));
    TRY(lock(file.get(), path));
    return file;
}

} // namespace liveupdate::supervisor
