#include "supervisor/disk_file.hpp"

#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <memory>

#include "handoff/base/fd.hpp"

namespace liveupdate::supervisor {
namespace {

constexpr uint64_t kSector = 512;
constexpr uint32_t kLargestBlock = 4096;

Result<void> lock(int file, const DiskConfig& config) {
    struct flock whole {};
    whole.l_type = config.read_only ? F_RDLCK : F_WRLCK;
    whole.l_whence = SEEK_SET;
    if (::fcntl(file, F_OFD_SETLK, &whole) == 0) return {};
    if (errno == EAGAIN || errno == EACCES)
        return Error(ErrorCode::kBusy, "disk " + config.path +
                                           " is in use: another process holds its lock; stop the VM that has "
                                           "it, or use a copy");
    return Error::from_errno("lock disk " + config.path);
}

// A read at half a block's offset tells whether direct I/O takes units of 512 bytes.
bool takes_sectors(int file) {
    std::unique_ptr<void, decltype(&::free)> buffer(::aligned_alloc(kLargestBlock, kLargestBlock), &::free);
    return buffer && (::pread(file, buffer.get(), kSector, kSector) >= 0 || errno != EINVAL);
}

Result<void> measure(int file, const DiskConfig& config, handoff::proto::Disk& disk) {
    struct stat what {};
    if (::fstat(file, &what) < 0) return Error::from_errno("disk " + config.path);
    uint64_t bytes = static_cast<uint64_t>(what.st_size);
    uint32_t block = kSector;
    if (S_ISBLK(what.st_mode)) {
        int logical = 0;
        if (::ioctl(file, BLKGETSIZE64, &bytes) < 0 || ::ioctl(file, BLKSSZGET, &logical) < 0)
            return Error::from_errno("ask the size of disk " + config.path);
        block = static_cast<uint32_t>(logical);
    } else if (!S_ISREG(what.st_mode)) {
        return Error(ErrorCode::kInvalid, "disk " + config.path + " is neither a file nor a block device");
    } else if (config.direct && !takes_sectors(file)) {
        block = kLargestBlock;
    }
    if (bytes == 0 || bytes % block != 0)
        return Error(ErrorCode::kInvalid, "disk " + config.path + " has " + std::to_string(bytes) +
                                              " bytes, which are not whole blocks of " +
                                              std::to_string(block));
    disk.set_sectors(bytes / kSector);
    disk.set_block_size(block);
    return {};
}

} // namespace

Result<DiskFile> open_disk(const DiskConfig& config, const std::string& name) {
    DiskFile opened;
    const int flags = (config.read_only ? O_RDONLY : O_RDWR) | (config.direct ? O_DIRECT : 0);
    auto file = fd::open(config.path, flags);
    if (!file && file.error().system_errno == EINVAL && config.direct)
        return Error(ErrorCode::kUnsupported,
            "disk " + config.path + ": its file system knows no O_DIRECT; write direct = false");
    if (!file) return std::move(file).error().context("disk");
    opened.file = std::move(*file);
    TRY(lock(opened.file.get(), config));
    TRY(measure(opened.file.get(), config, opened.disk));
    opened.disk.set_name(name);
    opened.disk.set_read_only(config.read_only);
    opened.disk.set_serial(config.serial.empty() ? name : config.serial);
    opened.disk.set_queues(config.queues);
    return opened;
}

} // namespace liveupdate::supervisor
