#include "supervisor/disk_copy.hpp"

#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "handoff/base/fd.hpp"

namespace liveupdate::supervisor {
namespace {

constexpr uint64_t kStep = uint64_t{8} << 20;
constexpr size_t kByHand = size_t{1} << 20;

bool cannot_share(int problem) {
    return problem == EOPNOTSUPP || problem == EXDEV || problem == EINVAL || problem == ENOTTY ||
           problem == ENOSYS;
}

Result<void> check_cancelled(int cancel_fd) {
    pollfd polled{cancel_fd, POLLIN, 0};
    if (cancel_fd >= 0 && ::poll(&polled, 1, 0) == 1)
        return Error(ErrorCode::kAborted, "somebody asked for the work to stop");
    return {};
}

// For two file systems between which the kernel does not copy.
Result<ssize_t> copy_by_hand(int from, off_t& in, int to, off_t& out, size_t size) {
    std::vector<char> bytes(std::min<size_t>(size, kByHand));
    const ssize_t got = ::pread(from, bytes.data(), bytes.size(), in);
    if (got < 0) return Error::from_errno("read");
    TRY(fd::pwrite_all(to, bytes.data(), static_cast<size_t>(got), static_cast<uint64_t>(out)));
    in += got;
    out += got;
    return got;
}

Result<void> copy_range(int from, int to, uint64_t offset, uint64_t size, int cancel_fd, uint64_t& copied) {
    auto in = static_cast<off_t>(offset), out = in;
    while (size > 0) {
        TRY(check_cancelled(cancel_fd));
        ssize_t done = ::copy_file_range(from, &in, to, &out, std::min(size, kStep), 0);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0 && cannot_share(errno)) {
            TRY_ASSIGN(done, copy_by_hand(from, in, to, out, size));
        }
        if (done < 0) return Error::from_errno("copy");
        if (done == 0) return Error(ErrorCode::kRefused, "the disk has become shorter while it was copied");
        size -= static_cast<uint64_t>(done);
        copied += static_cast<uint64_t>(done);
    }
    return {};
}

Result<uint64_t> copy_data(int from, int to, uint64_t size, int cancel_fd) {
    uint64_t copied = 0;
    for (uint64_t at = 0; at < size;) {
        const off_t data = ::lseek(from, static_cast<off_t>(at), SEEK_DATA);
        if (data < 0 && errno == ENXIO) break; // only a hole is left
        const off_t hole = data < 0 ? -1 : ::lseek(from, data, SEEK_HOLE);
        const uint64_t begin = data < 0 ? at : static_cast<uint64_t>(data);
        const uint64_t end = hole < 0 ? size : std::min(static_cast<uint64_t>(hole), size);
        TRY(copy_range(from, to, begin, end - begin, cancel_fd, copied));
        at = end;
    }
    return copied;
}

Result<DiskCopy> fill_copy(int disk, int to, CopyWay way, int cancel_fd) {
    struct stat status {};
    if (::fstat(disk, &status) < 0) return Error::from_errno("stat");
    if (!S_ISREG(status.st_mode)) return Error(ErrorCode::kInvalid, "only disks that are files are copied");
    DiskCopy copy;
    copy.shares = ::ioctl(to, FICLONE, disk) == 0;
    if (!copy.shares && !cannot_share(errno)) return Error::from_errno("share the disk's blocks");
    if (!copy.shares && way == CopyWay::kReflink)
        return Error(ErrorCode::kUnsupported, "blocks cannot be shared between the two files (reflink)");
    if (!copy.shares) {
        // Opened once more: a disk may be open past the page cache, which not all copies can do.
        TRY_ASSIGN(const UniqueFd from, fd::open("/proc/self/fd/" + std::to_string(disk), O_RDONLY));
        if (::ftruncate(to, status.st_size) < 0) return Error::from_errno("size the copy");
        TRY_ASSIGN(copy.bytes, copy_data(from.get(), to, static_cast<uint64_t>(status.st_size), cancel_fd));
    }
    if (::fsync(to) < 0) return Error::from_errno("sync the copy");
    return copy;
}

} // namespace

Result<DiskCopy> copy_disk(int from, const std::string& to, CopyWay way, int cancel_fd) {
    TRY_ASSIGN(const UniqueFd file, fd::open(to, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600));
    auto copy = fill_copy(from, file.get(), way, cancel_fd);
    if (copy) return copy;
    ::unlink(to.c_str());
    return std::move(copy).error().context("copy a disk to " + to);
}

} // namespace liveupdate::supervisor
