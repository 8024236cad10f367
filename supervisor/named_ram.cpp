#include "supervisor/named_ram.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "handoff/base/fd.hpp"

namespace liveupdate::supervisor {
namespace {

constexpr off_t kSyncStep = off_t{64} << 20;

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
    return ::fstat(file, &open) == 0 && ::stat(path.c_str(), &named) == 0 && open.st_dev == named.st_dev &&
           open.st_ino == named.st_ino;
}

bool is_hugetlbfs(int file) {
    struct statfs where {};
    return ::fstatfs(file, &where) == 0 && where.f_type == HUGETLBFS_MAGIC;
}

bool lies_on_hugetlbfs(const std::string& path) {
    struct statfs where {};
    return ::statfs(path.c_str(), &where) == 0 && where.f_type == HUGETLBFS_MAGIC;
}

// In no folder, of huge pages or not.
bool is_memfd(const handoff::RamBlock& block) {
    const int seals = ::fcntl(block.file.get(), F_GET_SEALS);
    return block.kind == handoff::RamKind::kMemfd || (seals >= 0 && (seals & F_SEAL_SHRINK) != 0);
}

Error taken(const std::string& path) {
    return {ErrorCode::kRefused, path + " exists; save into a folder of this guest's own"};
}

} // namespace

NamedRam::~NamedRam() {
    for (const std::string& path : given_)
        ::unlink(path.c_str());
}

Result<void> NamedRam::link(const handoff::RamBlock& block, const std::string& directory,
    const std::string& home, const std::string& vm) {
    const std::string path = directory + "/" + block.name;
    if (is_memfd(block))
        return Error(
            ErrorCode::kRefused, "RAM block " + block.name +
                                     " is anonymous memory, which cannot stay in a file; save it with "
                                     "--file, or give its [[memory]] backing = \"tmpfs\" or \"file\"");
    TRY(lock(block.file.get(), path));
    if (block.kind == handoff::RamKind::kFile) {
        TRY_ASSIGN(on_disk_.emplace_back(), fd::dup(block.file.get()));
    }
    if (same_file(block.file.get(), path)) return {}; // of a guest that was restored from there
    if (block.kind != handoff::RamKind::kHugetlbfs) return give_name(block, path);
    if (lies_on_hugetlbfs(directory))
        return Error(ErrorCode::kRefused,
            directory +
                " is on a hugetlbfs, which has no files but RAM; save into a folder elsewhere, for example "
                "on a disk: RAM stays where it is");
    struct stat status {};
    if (::fstat(block.file.get(), &status) < 0) return Error::from_errno("look at RAM block " + block.name);
    const std::string there =
        home + "/liveupdate-" + vm + "-" + block.name + "-" + std::to_string(status.st_ino);
    if (!same_file(block.file.get(), there)) TRY(give_name(block, there));
    if (::symlink(there.c_str(), path.c_str()) < 0) {
        if (errno == EEXIST) return taken(path);
        return Error::from_errno("link " + path + " to " + there);
    }
    given_.push_back(path);
    return {};
}

// In pieces, since an fsync cannot be called off.
Result<void> NamedRam::sync(int cancel_fd) const {
    for (const UniqueFd& file : on_disk_) {
        struct stat status {};
        if (::fstat(file.get(), &status) < 0) return Error::from_errno("look at RAM on its disk");
        for (off_t at = 0; at < status.st_size; at += kSyncStep) {
            pollfd cancelled{cancel_fd, POLLIN, 0};
            if (::poll(&cancelled, 1, 0) > 0) return Error(ErrorCode::kAborted, "called off");
            constexpr unsigned kWrite =
                SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
            if (::sync_file_range(file.get(), at, kSyncStep, kWrite) < 0)
                return Error::from_errno("write RAM to its disk");
        }
        if (::fsync(file.get()) < 0) return Error::from_errno("bring RAM to its disk");
    }
    return {};
}

Result<void> NamedRam::give_name(const handoff::RamBlock& block, const std::string& path) {
    const std::string open = "/proc/self/fd/" + std::to_string(block.file.get());
    if (::linkat(AT_FDCWD, open.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW) == 0) {
        given_.push_back(path);
        return {};
    }
    if (errno == EXDEV)
        return Error(ErrorCode::kRefused, path.substr(0, path.rfind('/')) +
                                              " is not on the file system that RAM block " + block.name +
                                              " lies on; save into a folder there ([[memory]] directory)");
    if (errno == EEXIST) return taken(path);
    return Error::from_errno("name RAM block " + block.name + " " + path);
}

Result<UniqueFd> open_named_ram(const std::string& directory, const std::string& name) {
    const std::string path = directory + "/" + name;
    auto file = fd::open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK);
    if (!file && file.error().system_errno == ELOOP) {
        file = fd::open(path, O_RDWR | O_NONBLOCK);
        if (file && !is_hugetlbfs(file->get()))
            return Error(ErrorCode::kRefused, path + " is a symbolic link to what is no RAM of huge pages");
    }
    if (!file) return std::move(file).error();
    TRY(lock(file->get(), path));
    return std::move(*file);
}

} // namespace liveupdate::supervisor
