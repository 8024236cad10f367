#include "supervisor/saved_disks.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include "supervisor/disk_copy.hpp"

namespace liveupdate::supervisor {
namespace {

// The guest's descriptor of it; -1 when it only reads, so that all may share it.
int written_disk(const VmConfig& config, const GuestFiles& files, size_t index) {
    const auto found = files.devices.find("disk" + std::to_string(index));
    return config.disks[index].read_only || found == files.devices.end() ? -1 : found->second.get();
}

} // namespace

std::string saved_disk(const std::string& directory, size_t index) {
    return directory + "/disk" + std::to_string(index);
}

SavedDisks::~SavedDisks() {
    for (const std::string& path : copied_)
        ::unlink(path.c_str());
}

Result<void> SavedDisks::check(
    const VmConfig& config, const GuestFiles& files, const std::string& directory, AfterSave after) {
    for (size_t i = 0; i < config.disks.size(); ++i) {
        const int disk = written_disk(config, files, i);
        if (disk < 0) continue;
        const std::string which = "disk " + config.disks[i].path;
        struct stat status {};
        if (::fstat(disk, &status) < 0) return Error::from_errno("stat " + which);
        if (!S_ISREG(status.st_mode))
            return Error(ErrorCode::kRefused,
                which +
                    " is a block device that the guest writes to, which is not copied; make it a file, or "
                    "read_only");
        if (after == AfterSave::kStop) continue;
        const std::string trial = saved_disk(directory, i) + ".trial";
        ::unlink(trial.c_str());
        const auto copied = copy_disk(disk, trial, CopyWay::kReflink);
        ::unlink(trial.c_str());
        if (copied) continue;
        if (copied.error().code != ErrorCode::kUnsupported) return Error(copied.error());
        return Error(ErrorCode::kRefused, which + " and " + directory +
                                              " cannot share blocks (reflink), so the guest would stand "
                                              "still for as long as copying takes; stop it with --stop");
    }
    return {};
}

Result<void> SavedDisks::copy(
    const VmConfig& config, const GuestFiles& files, const std::string& directory, int cancel_fd) {
    for (size_t i = 0; i < config.disks.size(); ++i) {
        const int disk = written_disk(config, files, i);
        if (disk < 0) continue;
        const std::string path = saved_disk(directory, i);
        ::unlink(path.c_str()); // of a former save
        TRY(copy_disk(disk, path, CopyWay::kAny, cancel_fd));
        copied_.push_back(path);
    }
    return {};
}

} // namespace liveupdate::supervisor
